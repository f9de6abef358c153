"""`cutaway agent`: tool-use RL. Flags to settings, and the playground's tools; the work is in `stages/agent.py`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.cli.common import parse_stage
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.tools.toolbox import Toolbox


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("agent", argv)
    from cutaway.stages import agent

    agent.run(recipe, run, playground_toolboxes(run.data))
    return 0


def playground_toolboxes(files: Sequence[str]) -> "Callable[[Mapping[str, Any]], Toolbox | None]":
    """The tools of the town that the files belong to, whose seed is in the `manifest.json` beside them."""
    from cutaway.playground.evaluation import toolboxes
    from cutaway.playground.world import make_world

    manifests = [Path(file).parent / "manifest.json" for file in files]
    found = [path for path in manifests if path.is_file()]
    made = toolboxes(make_world(int(json.loads(found[0].read_text(encoding="utf-8"))["seed"]))) if found else None

    def toolbox_of(record: Mapping[str, Any]) -> "Toolbox | None":
        environment = record["environment"]
        if environment["name"] != "playground":
            raise UserError(f"environment {environment['name']!r} is not known: say with --environment what it is")
        if made is None:
            raise UserError(f"{files[0]}: no manifest.json beside it says which town its tasks belong to")
        return made(int(environment["seed"]), str(environment.get("language", "en")))

    return toolbox_of
