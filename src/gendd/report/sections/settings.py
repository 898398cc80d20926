"""Settings of the run."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from gendd.report.markup import part, section

_FACTS = {
    "train_images": "Training images",
    "val_images": "Validation images",
    "test_images": "Test images",
    "epochs": "Epochs",
    "seed": "Seed",
    "device": "Device",
    "precision": "Precision",
}


def settings(metrics: dict[str, Any], config_yaml: str) -> Markup | None:
    """Return the main settings of the run, and its full configuration, collapsed."""
    facts = _facts(metrics)
    if not facts and not config_yaml:
        return None
    return section("Settings", part("settings", facts, config_yaml))


def _facts(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    run = metrics.get("run", {})
    known = {key: run[key] for key in _FACTS if run.get(key) is not None}
    if run.get("tested_on") == "validation":
        known.pop("test_images", None)
    elif run.get("tested_on") == "held-out":
        known["test_images"] = f"{known['test_images']:,} (held out)"
    facts = [
        (_FACTS[key], f"{value:,}" if isinstance(value, int) and key != "seed" else str(value))
        for key, value in known.items()
    ]
    probe = metrics["student"].get("probe")
    if probe is not None and probe["kept"] == "refitted":
        facts.append(("Linear readout", f"refitted to {probe['target']}"))
    return facts + [(name, str(version)) for name, version in (run.get("versions") or {}).items()]
