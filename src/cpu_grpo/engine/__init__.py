"""The fast engine: a drop-in for TRL's GRPOTrainer whose rollouts and token log-probs are made for CPUs.

It takes a transformers model, token ids and TRL's settings, and knows nothing of tasks, files, MLflow, Hydra or DVC.
Of its parts `trainer` alone knows TRL; `rollout` and `learner` know neither it nor each other.
"""
