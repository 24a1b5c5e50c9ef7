"""One experiment: a model trained or evaluated on a task, its figures, and its record in MLflow.

`training` and `evaluation` are the ways in, for one run; what several runs say together is `study`'s and `report`'s.
"""
