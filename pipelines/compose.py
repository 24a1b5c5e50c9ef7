"""Writes params.yaml, the composed default configuration, from conf/. Overrides may follow: task=gsm_symbolic"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from cpu_grpo.config.compose import compose_pipeline, sentences, typed
from cpu_grpo.config.schema import Pipeline
from cpu_grpo.files import write_text

if __name__ == "__main__":
    with sentences():
        composed = compose_pipeline(sys.argv[1:])
        typed(composed, Pipeline)
        write_text(Path("params.yaml"), OmegaConf.to_yaml(composed))
        print("params.yaml")
