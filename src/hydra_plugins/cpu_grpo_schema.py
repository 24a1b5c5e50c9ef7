"""Hydra finds this by itself, so that every composition (DVC's too) knows our schemas."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from cpu_grpo.config.schema import Pipeline, Train
from cpu_grpo.config.study_schema import StudyJob


class CPUGRPOSchema(SearchPathPlugin):
    """Makes the schemas known, as `pipeline_schema`, `train_schema` and `study_schema`; `names` lists keys."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        OmegaConf.register_new_resolver("names", lambda items: ",".join(map(str, items)), replace=True)
        store = ConfigStore.instance()
        store.store(name="pipeline_schema", node=Pipeline)
        store.store(name="train_schema", node=Train)
        store.store(name="study_schema", node=StudyJob)
