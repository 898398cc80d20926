"""Origin and licence of the weights of a run's networks."""

from __future__ import annotations

from gendd.config import ModelConfig
from gendd.models.weights import saved_info


def provenance(student: ModelConfig, teacher: ModelConfig | None) -> dict[str, str]:
    """Provenance recorded in a student's ``info``; unknown entries are left out.

    Args:
        student: Section of the student; its ``license`` is that of the finished student.
        teacher: Section of the teacher; None without one.

    Returns:
        ``license``; ``base_model``, a Hub repository, and ``base_license`` of the weights that training
        started from; ``teacher_license``.
    """
    started = origin(student)
    known = {
        "license": student.license,
        "base_model": started.get("repository"),
        "base_license": started.get("license"),
    }
    if teacher is not None:
        known["teacher_license"] = teacher.license or origin(teacher).get("license")
    return {key: value for key, value in known.items() if value is not None}


def origin(config: ModelConfig) -> dict[str, str]:
    """Return ``repository`` on the Hub and ``license`` of a network's weights, if known.

    For timm's weights both come from timm; for the student of a run, from its config.json.
    """
    found: dict[str, str | None] = {}
    if config.weights is not None:
        info = saved_info(config.weights)
        found["repository"] = info.get("base_model")
        found["license"] = info.get("license") or info.get("base_license")
    elif config.pretrained:
        family, _, name = config.name.partition("/")
        if family == "timm":
            import timm

            settings = timm.get_pretrained_cfg(name)
            if settings is not None:
                found = {"repository": settings.hf_hub_id, "license": settings.license}
        elif family == "hf" and not name.startswith((".", "/")):
            found["repository"] = name
    return {key: str(value) for key, value in found.items() if value}
