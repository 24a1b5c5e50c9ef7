"""Where things lie on disk: the pipeline's folders, what was made already and from which configuration.

What is missing is made by `models` and `tasks`; nothing here trains or computes.
"""
