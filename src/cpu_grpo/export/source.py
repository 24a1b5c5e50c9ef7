"""What is exported: a model's directory, what is told of it, and where its results lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.names import RULE, is_name
from cpu_grpo.errors import UserError
from cpu_grpo.models.checking import check_loadable
from cpu_grpo.models.integrity import intact_hash
from cpu_grpo.models.loading import model_record
from cpu_grpo.text import shown
from cpu_grpo.workspace.models import held_model


@dataclass(frozen=True)
class Source:
    """A whole model on disk."""

    name: str
    directory: Path
    root: Path  # of the results
    record: dict[str, Any]  # what source.json says
    weights_hash: str

    @property
    def base(self) -> dict[str, Any]:
        """Origin, revision and license of the model that training began from, or of this one where it was not trained.

        Empty texts for what is not known.
        """
        found = self.record.get("base") or self.record
        return {key: str(found.get(key) or "") for key in ("origin", "revision", "license")}

    @property
    def recipe(self) -> dict[str, Any]:
        """How it was trained; empty where it was not, or was by a version that did not keep it."""
        found = self.record.get("recipe")
        return found if isinstance(found, dict) else {}

    @property
    def hub_base(self) -> str:
        """The hub's name of the model that training began from; empty where it has none."""
        origin = self.base["origin"]
        return origin.removeprefix("hub ") if origin.startswith("hub ") else ""

    @property
    def start(self) -> str:
        """The model that this variant's training started from, which its adapters belong on."""
        before = str(self.recipe.get("init_from") or "base")
        return self.hub_base if before == "base" and self.hub_base else f"models/{before}"

    @property
    def trained(self) -> bool:
        return str(self.record.get("origin", "")).startswith("variant ")


def find_source(name: str) -> Source:
    """`base`, a variant's name or a directory.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    directory = held_model(name)
    if directory is None:
        how = (
            "make it with `python pipelines/model.py`" if name == "base" else f"train it with `dvc repro train@{name}`"
        )
        raise UserError(
            f"There is no model {name}: neither models/{name} nor {name} is a model's directory; {how}, or correct the "
            "name."
        )
    check_loadable(directory)
    full = directory.resolve()
    if not is_name(full.name):
        raise UserError(f"{shown(full.name)} cannot be a file's name on every system: rename the directory; {RULE}.")
    root = directory.parent.parent if full.parent.name == "models" else Path()
    return Source(full.name, directory, root, model_record(directory), intact_hash(directory))
