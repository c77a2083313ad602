"""Recorded configurations that would run code of whoever wrote the file, were they instantiated."""

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Bomb:
    """What touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def calls(marker: Path) -> dict[str, dict[str, Any]]:
    """Name -> a group of options that leaves ``marker`` when it is instantiated; or names what must not be
    reached."""
    pickled = marker.with_name("pickled.pt")
    pickled.write_bytes(pickle.dumps(Bomb(marker)))
    shell = f"touch '{marker}'"
    touch = {"_target_": "os.system", "_args_": [shell]}
    load = {"_args_": [str(pickled)], "weights_only": False}
    return {
        "shell": touch,
        "shell by name": {"_target_": "os.system", "command": shell},
        "write": {"_target_": "pathlib.Path.write_text", "_args_": [_path(marker), "x"]},
        "unpickle": {"_target_": "torch.load", **load},
        "unpickle by a module of ours": {"_target_": "medcm_cli.training.loop.torch.load", **load},
        "unpickle by a module that was": {"_target_": "medcm_cli.fit.torch.load", **load},
        "unpickle by the optimisers": {"_target_": "torch.optim.optimizer.torch.load", **load},
        "eval": {"_target_": "builtins.eval", "_args_": [f"open({str(marker)!r}, 'w').close()"]},
        "the own program": {"_target_": "medcm_cli.cli.os.system", "_args_": [shell]},
        "a file by a function of ours": {
            "_target_": "medcm_cli.files.write_text",
            "_args_": [_path(marker), "x"],
        },
        "a method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
        "a method of a module of ours": {"_target_": "hydra.utils.get_method", "path": "medcm_cli.cli.main"},
        "an object": {"_target_": "hydra.utils.get_object", "path": "os.environ"},
        "a class by position": {"_target_": "hydra.utils.get_class", "_args_": ["subprocess.Popen"]},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": touch},
        "a part": {"_target_": "os.system", "_partial_": True, "command": shell},
        "a constructor's argument": {"_target_": "medcm_cli.model.ResidualError", "components": touch},
        "a positional argument": {"_target_": "medcm_cli.model.ResidualError", "_args_": [[touch]]},
        "what is not followed": {
            "_target_": "medcm_cli.model.ResidualError",
            "_recursive_": False,
            "_convert_": "none",
            "components": touch,
        },
        "a target that is made": {"_target_": {"_target_": "os.system", "_args_": [shell]}},
        "a reference": {"_target_": "${oc.decode:os.system}", "_args_": [shell]},
        "the environment": {"_target_": "medcm_cli.model.ResidualError", "components": ["${oc.env:HOME}"]},
    }


def _path(marker: Path) -> dict[str, str]:
    return {"_target_": "pathlib.Path", "_args_": [str(marker)]}  # type: ignore[dict-item]


Config = Mapping[str, Any]


def _within(*keys: str) -> Callable[[Config, Any], dict[str, Any]]:
    def put(config: Config, call: Any) -> dict[str, Any]:
        changed = copy.deepcopy(dict(config))
        group: Any = changed
        for key in keys[:-1]:
            group = group.setdefault(key, {})
        group[keys[-1]] = call
        return changed

    return put


PLACES: dict[str, Callable[[Config, Any], dict[str, Any]]] = {
    "optimizer": _within("optimizer"),
    "network": _within("network"),
    "network.branches": _within("network", "branches"),
    "pk": _within("pk"),
    "pk.rate": _within("pk", "rate"),
    "error": _within("error"),
    "objective": _within("objective"),
    "split": _within("split"),
    "dataset.preparation": _within("dataset", "preparation"),
    "in an option of nobody": _within("another", "option"),
    "in a list": lambda config, call: {**config, "random_effects": [[[call]]]},
    "very deep": lambda config, call: {**config, "network": {**config["network"], "x": _deep(call)}},
}


def _deep(call: Any) -> Any:
    for _ in range(40):  # of more, the file is refused unread
        call = [call]
    return call
