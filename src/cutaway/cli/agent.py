"""`cutaway agent`: tool-use RL. Flags to settings, and the playground's tools; the work is in `stages/agent.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("agent", argv)
    from cutaway.playground.evaluation import toolboxes_beside
    from cutaway.stages import agent

    agent.run(recipe, run, toolboxes_beside(run.data))
    return 0
