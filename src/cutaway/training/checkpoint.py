"""Checkpoints that a crash cannot tear: complete directories under `state/`, moved into place by one rename.

    RUN/state/step-00000100/   model.safetensors  optimizer.safetensors  state.json     what a resume reads
                               NAME.safetensors                                          a companion, such as a critic
    RUN/model.safetensors      a hard link to the newest of them                        what everybody else reads

An adapted model's file is `adapter_model.safetensors` in both places, and holds the adapter only. Nothing is pickled. A
resume takes the newest directory that can be read in full.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from cutaway.errors import UserError
from cutaway.model.sharded import on_first, part_of
from cutaway.model.weights import load_stored, stored_weights, write_safetensors, write_text

log = logging.getLogger("cutaway")
NONE: Mapping[str, nn.Module] = MappingProxyType({})


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path, keep: int) -> None:
        self.run, self.folder, self.keep = run, run / "state", max(1, keep)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = [path.name for path in self.folder.glob("step-*") if (path / "state.json").is_file()]
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        state: dict[str, Any],
        companions: Mapping[str, nn.Module] = NONE,
        write: bool = True,
    ) -> None:
        """Write a checkpoint, publish its weights, remove the ones beyond `keep`. A full disk is a UserError.

        `companions` are trained beside the model, saved with it and published nowhere. Of sharded weights all ranks
        call, one of them with `write`: the file holds whole tensors, which any number of ranks can read.
        """
        name, weights, metadata = stored_weights(model)
        tensors, numbers = _flatten(_parameters(model, companions), optimizers)
        if not write:
            return
        final = self._path(step)
        partial = final.with_name(f".{final.name}.partial")
        try:
            for stale in self.folder.glob(".step-*.partial"):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True)
            write_safetensors(weights, partial / name, metadata)
            for companion, module in companions.items():
                kept_weights = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
                write_safetensors(kept_weights, partial / f"{companion}.safetensors")
            tensors["rng.cpu"] = torch.get_rng_state()
            if torch.cuda.is_available():
                tensors["rng.cuda"] = torch.cuda.get_rng_state()
            write_safetensors(tensors, partial / "optimizer.safetensors")
            document = {"step": step, "optimizer": numbers} | state
            write_text(json.dumps(document, indent=1) + "\n", partial / "state.json")
            _sync(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            _sync(self.folder)
            self.publish(step)
        except (OSError, UserError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.steps()
            last = f"the checkpoint of step {kept[-1]} is intact" if kept else "there is no earlier checkpoint"
            raise UserError(f"checkpoint of step {step} could not be written ({error}); {last}") from error
        # One with a later step was damaged, or this run would have gone on from it.
        whole = [kept for kept in self.steps() if kept <= step][-self.keep :]
        for other in set(self.steps()) - set(whole):
            shutil.rmtree(self._path(other), ignore_errors=True)

    def publish(self, step: int) -> None:
        """Make a checkpoint's weights the run's `model.safetensors`, by a hard link where the file system has them."""
        source = weights_file(self._path(step))
        target = self.run / source.name
        partial = target.with_name(target.name + ".partial")
        partial.unlink(missing_ok=True)
        if target.exists() and os.path.samefile(source, target):
            return  # renaming one link of a file onto another does nothing, and would leave both
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        os.replace(partial, target)

    def restore(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        publish: bool = True,
        companions: Mapping[str, nn.Module] = NONE,
    ) -> dict[str, Any]:
        """Load the newest checkpoint that is whole into model, companions, optimizers and random generators; give back
        its state.

        Every rank restores, one of them publishes.
        """
        for step in reversed(self.steps()):
            path = self._path(step)
            try:
                state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
                weights = _read(weights_file(path))
                tensors = _read(path / "optimizer.safetensors")
                beside = {name: _read(path / f"{name}.safetensors") for name in companions}
            except (OSError, ValueError, SafetensorError) as error:
                log.warning("%s: damaged (%s); trying the checkpoint before it", path, error)
                continue
            load_stored(model, weights, str(path))
            for name, module in companions.items():
                module.load_state_dict(beside[name])
            _unflatten(_parameters(model, companions), optimizers, tensors, state["optimizer"])
            torch.set_rng_state(tensors["rng.cpu"])
            if "rng.cuda" in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["rng.cuda"])
            if publish:
                self.publish(step)
            return state
        raise UserError(f"{self.run}: no checkpoint to resume from")

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def weights_file(checkpoint: Path) -> Path:
    """The weights of a checkpoint: a whole model's, or an adapter's."""
    adapter = checkpoint / "adapter_model.safetensors"
    return adapter if adapter.exists() else checkpoint / "model.safetensors"


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)


def _parameters(model: nn.Module, companions: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Everything trained, by a name of its own."""
    found = dict(model.named_parameters())
    for companion, module in companions.items():
        found |= {f"{companion}/{name}": parameter for name, parameter in module.named_parameters()}
    return found


def _flatten(
    parameters: Mapping[str, nn.Parameter], optimizers: Sequence[Optimizer]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Optimizer states as tensors named `optimizer.parameter.key`, and the numbers among them."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    tensors: dict[str, Tensor] = {}
    numbers: list[dict[str, Any]] = []
    for i, optimizer in enumerate(optimizers):
        plain: dict[str, Any] = {}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                where = f"{i}.{names[id(parameter)]}.{key}"
                if isinstance(value, Tensor):
                    tensors[where] = on_first(value)
                else:
                    plain[where] = value
        numbers.append({"kind": type(optimizer).__name__, "numbers": plain})
    return tensors, numbers


def _unflatten(
    parameters: Mapping[str, nn.Parameter],
    optimizers: Sequence[Optimizer],
    tensors: dict[str, Tensor],
    numbers: list[dict[str, Any]],
) -> None:
    kinds = [type(optimizer).__name__ for optimizer in optimizers]
    if kinds != [entry["kind"] for entry in numbers]:
        raise UserError(f"checkpoint was made with {[entry['kind'] for entry in numbers]}, this run has {kinds}")
    for i, optimizer in enumerate(optimizers):
        values = {name: value for name, value in tensors.items() if name.startswith(f"{i}.")}
        for where, value in {**values, **numbers[i]["numbers"]}.items():
            name, key = where.split(".", 1)[1].rsplit(".", 1)
            parameter = parameters[name]
            if isinstance(value, Tensor):
                # Copied, because safetensors maps the file. A fused step counter lives beside its parameter.
                beside = key != "step" or optimizer.defaults.get("fused")
                value = value.to(parameter.device if beside else "cpu", copy=True)
                value = part_of(value, parameter) if value.shape == parameter.shape else value
            optimizer.state[parameter][key] = value
