"""Writes params.yaml, a pipeline's composed configuration, from conf/. Overrides may follow: task=gsm_symbolic"""

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from cpu_grpo.config.compose import compose_pipeline, sentences, typed
from cpu_grpo.config.schema import Pipeline
from cpu_grpo.files import write_text

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-name", default="config", help="which pipeline's: config (the default) or gsm8k")
    options, overrides = parser.parse_known_args()
    with sentences():
        composed = compose_pipeline(overrides, options.config_name)
        typed(composed, Pipeline)
        write_text(Path("params.yaml"), OmegaConf.to_yaml(composed))
        print("params.yaml")
