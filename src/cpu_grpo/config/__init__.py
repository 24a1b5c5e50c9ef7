"""The typed configuration: what can be set (schema), what is allowed (checks), how it is read (compose)."""

from cpu_grpo.config.compose import launch, load_params
from cpu_grpo.config.schema import Pipeline, Shared, Train, Variant
from cpu_grpo.config.study_schema import StudyJob

__all__ = ["Pipeline", "Shared", "StudyJob", "Train", "Variant", "launch", "load_params"]
