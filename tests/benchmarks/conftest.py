"""The benchmark's modules import each other by their bare names, as scripts in one folder do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
