"""Tool-use RL: the policy calls tools over several turns and is rewarded for where it arrives.

    python -m cutaway.stages.agent recipe.toml [--resume]       the same as `cutaway agent`, without the playground

An episode is `rl/environment.py` `play`. Its reward comes at the end and counts for every token that the policy wrote
on the way; what tools said is read, never trained. The rest is as in `stages/grpo.py`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.recipe.recipe import Recipe, RunSettings
from cutaway.recipe.rl import AgentSettings
from cutaway.rl.custom import load_function
from cutaway.rl.environment import ToolboxOf
from cutaway.stages import rl, shared
from cutaway.tools.standard import standard_toolbox
from cutaway.tools.toolbox import Toolbox


def run(recipe: Recipe, run: RunSettings, world: ToolboxOf | None = None) -> Path:
    """Train the model of `run.init` on the tasks of `run.data`; `world` knows the environments that records name."""
    return rl.train("agent", recipe, run, toolboxes(recipe.agent, world))


def toolboxes(settings: AgentSettings, world: ToolboxOf | None = None) -> ToolboxOf:
    """From a record to its tools: a learner's function, the world's, or the standard tools that the record offers."""
    if settings.turns < 1 or not settings.tool_seconds > 0:
        raise UserError("turns must be at least 1 and tool_seconds above 0")
    own = load_function(settings.environment) if settings.environment else world
    standard = standard_toolbox(seconds=settings.tool_seconds)

    def toolbox_of(record: Mapping[str, Any]) -> Toolbox | None:
        if own is not None and (settings.environment or record.get("environment")):
            box: Toolbox | None = own(record)
            if box is not None:
                box.seconds = settings.tool_seconds
            return box
        if record.get("environment"):
            name = record["environment"]["name"]
            raise UserError(f"environment {name!r} is not known: say with --environment file.py:function what it is")
        offered = [tool for turn in record["conversations"] for tool in turn.get("tools", ())]
        names = [name for tool in offered if (name := tool.get("function", tool).get("name")) in standard]
        return standard.only(names) if names else None

    return toolbox_of


if __name__ == "__main__":
    sys.exit(shared.main(run, sys.argv[1:]))
