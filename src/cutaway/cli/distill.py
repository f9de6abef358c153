"""`cutaway distill`: learning from a teacher. Flags to settings; the work is in `stages/distill.py`."""

from collections.abc import Sequence

from cutaway.cli.common import parse_stage


def main(argv: Sequence[str]) -> int:
    """Parse the flags, then run the stage; importing torch waits until the flags are right."""
    recipe, run = parse_stage("distill", argv)
    from cutaway.stages import distill

    distill.run(recipe, run)
    return 0
