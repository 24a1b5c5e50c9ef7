"""Hydra finds this by itself, so that every composition (DVC's too) knows our schemas."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cpu_grpo.config.schema import register


class CPUGRPOSchema(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        register()
