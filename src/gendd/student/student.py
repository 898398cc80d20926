"""The student as it is saved, loaded and deployed: its backbone and readouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gendd.config import ReadoutConfig, ReadoutName, SamplerName, to_dict
from gendd.errors import UntrustedCodeError, UserError, did_you_mean, nearest
from gendd.files import check_code, no_student, read_text, student_folder, write_bytes, write_json
from gendd.models import Backbone, create_backbone, wrap
from gendd.models.projector import project
from gendd.student import readout as readouts
from gendd.student.generator import FeatureGenerator
from gendd.student.saved import FORMAT, check_size, checked
from gendd.student.uncertainty import PredictiveDistribution, check_samples, decompose, spread

# raised by files that are truncated, not a JSON object, or describe another network than their weights
_UNFIT = (
    OSError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    SafetensorError,
    RecursionError,
    AttributeError,
    RuntimeError,
)


class Student(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K) by the chosen readout.

    Args:
        backbone: The student network; its classifier is the linear readout.
        generator: The conditional generator of teacher features; None for a student without one.
        classifier: Classifier of generated features, D -> K: the teacher's, or the nearest-class-mean
            classifier; None without either.
        readout: Name and sampler settings; by default ``mean`` with a classifier, else ``linear``.
        info: Further information (class names, image size, …), saved in its ``config.json``.
        linear: Whether the backbone's classifier was trained and is available as a readout.

    ``folder`` is the folder it was loaded from; None if it was made in Python.

    A student trained without labels from a teacher without a classifier has no readout and no logits: use
    :meth:`features`, :meth:`embed` and :meth:`generate`.

    Raises:
        UserError: a classifier without a generator, or a readout that this student does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        generator: FeatureGenerator | None = None,
        classifier: nn.Linear | None = None,
        readout: ReadoutConfig | None = None,
        info: dict[str, Any] | None = None,
        linear: bool = True,
    ) -> None:
        super().__init__()
        if generator is None and classifier is not None:
            raise UserError(
                "Student: expected a generator with the classifier of what is generated, got a classifier "
                "alone; give both or neither."
            )
        self.backbone = backbone
        self.generator = generator
        self.classifier = classifier
        self.linear = linear and backbone.has_classifier
        self.settings = readout or ReadoutConfig()
        if self.settings.name == "auto":
            # a run chooses one on its validation images
            name: ReadoutName = "linear" if classifier is None else "mean"
            self.settings = dataclasses.replace(self.settings, name=name)
        self.info = dict(info or {})
        self.folder: Path | None = None
        if self.readouts:
            self.checked(cast(ReadoutName, self.settings.name))

    @property
    def readouts(self) -> tuple[ReadoutName, ...]:
        """Names of the readouts that this student has."""
        linear: tuple[ReadoutName, ...] = ("linear",) if self.linear else ()
        return linear if self.classifier is None else (*linear, "mean", "sample")

    @property
    def readout(self) -> ReadoutName:
        """Name of the readout that :meth:`forward` uses; assign another to change it."""
        return cast(ReadoutName, self.settings.name)

    @readout.setter
    def readout(self, name: ReadoutName) -> None:
        self.settings = dataclasses.replace(self.settings, name=self.checked(name))

    def checked(self, name: ReadoutName | None = None) -> ReadoutName:
        """Check that this student has a readout, by default the chosen one, and return its name.

        Raises:
            UserError: it does not have that readout, or has none.
        """
        name = name or self.readout
        if name not in self.readouts:
            reason = advice = ""
            if name in ("mean", "sample") and self.generator is None:
                reason, advice = " (it has no generator)", " Distil one with method gendd."
            elif name in ("mean", "sample"):
                reason, advice = " (nothing reads generated features)", " Distil with gendd.centres means."
            raise UserError(
                f"Readout: this student has {', '.join(self.readouts) or 'none'}{reason}, got {name!r}."
                f"{advice or nearest(str(name), self.readouts)}"
            )
        return name

    def num_classes(self, readout: ReadoutName | None = None) -> int:
        """Number of classes of a readout, by default the chosen one; they are the data's or the teacher's."""
        if (readout or self.readout) == "linear" or self.classifier is None:
            return self.backbone.num_classes
        return self.classifier.out_features

    def class_names(self, readout: ReadoutName | None = None) -> list[str]:
        """Names of a readout's K classes, the data's or the teacher's; their numbers if names are unknown."""
        classes = self.num_classes(readout)
        for key in ("class_names", "teacher_class_names"):
            names = self.info.get(key) or []
            if len(names) == classes:
                return [str(name) for name in names]
        return [str(index) for index in range(classes)]

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the student's own feature (B, d)."""
        return self.backbone.features(images)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> the expected teacher feature E[f | z] (B, D), in one pass.

        Raises:
            UserError: this student has no generator.
        """
        network = self._generator()
        return network.mean(network.condition(self.features(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> logits (B, K) of the chosen readout."""
        return self.logits(self.features(images))

    def logits(
        self, features: Tensor, readout: ReadoutName | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits (B, K) of the student's own features (B, d).

        Args:
            features: From :meth:`features`.
            readout: Name of the readout; by default the chosen one.
            generator: Source of the noise for ``sample``.

        Raises:
            UserError: it does not have that readout, or has none.
        """
        if not self.readouts:
            raise UserError(
                "This student has no readout: its teacher has no classifier and it saw no labels. Use its "
                "features(images), embed(images) or generate(images)."
            )
        name = self.checked(readout)
        if name == "linear":
            logits: Tensor = self.backbone.classifier(features)
            return logits
        network = self._generator()
        assert self.classifier is not None
        if name == "mean":
            return readouts.mean_logits(network, self.classifier, features)
        return readouts.sample_logits(network, self.classifier, features, self.settings, generator)

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        steps: int | None = None,
        guidance: float | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> Tensor:
        """Generate teacher features for images.

        Args:
            images: (B, C, H, W) in [0, 1].
            steps: Sampling steps; by default, like the other settings, the student's own.
            guidance: Scale of classifier-free guidance; 1 is none.
            num_samples: S.
            generator: Source of the noise, on the images' device.
            settings: Further settings of :class:`gendd.ReadoutConfig`: sampler, temperature, eta.

        Returns:
            (S, B, D).

        Raises:
            UserError: this student has no generator; guidance is not 1, but it was trained without condition
                dropout; or a setting is unknown.
        """
        network = self._generator()
        known = ("sampler", "temperature", "eta")
        for name in settings:
            if name not in known:
                raise UserError(f"Unknown sampling setting {name!r}.{did_you_mean(name, known)}")
        given = {"steps": steps, "guidance": guidance, "num_samples": num_samples, **settings}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(self.settings, **changed)
        return readouts.sampled_features(network, self.features(images), config, generator)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        uncertainty: int = 0,
        generator: torch.Generator | None = None,
        *,
        readout: ReadoutName | None = None,
        sampler: SamplerName | None = None,
        steps: int | None = None,
        eta: float | None = None,
        temperature: float = 1.0,
        guidance: float = 1.0,
    ) -> PredictiveDistribution:
        """Predict class probabilities of images, with uncertainty estimates if requested.

        Args:
            images: (B, C, H, W) in [0, 1].
            uncertainty: Number n of features to generate per image for the uncertainty estimates, which does
                not change the readout; 0: no estimates, at no cost.
            generator: Source of the noise, on the images' device.
            readout: Readout that gives the probabilities; by default the chosen one.
            sampler: Sampler of the n features; by default, like steps and eta, the student's own setting.
            steps: Sampling steps.
            eta: η of ddim; with 0 the samples differ only by the noise they start from.
            temperature: Factor on the noise of each ddpm step; 1 by default, whatever the student's setting.
            guidance: Scale of guidance, likewise 1: guided or colder samples do not follow p(f | z).

        Raises:
            UserError: n is neither 0 nor an integer from 2 to 10,000, or it is not 0 and this student has no
                generator or no classifier of generated features.
        """
        if uncertainty != 0:
            check_samples(uncertainty, self.generator is not None, self.classifier is not None)
        features = self.features(images)
        probabilities = self.logits(features, readout, generator).float().softmax(-1)
        if uncertainty == 0:
            return PredictiveDistribution(probabilities)
        given = {"sampler": sampler, "steps": steps, "eta": eta}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = dataclasses.replace(
            self.settings, num_samples=uncertainty, temperature=temperature, guidance=guidance, **changed
        )
        network = self._generator()
        samples = readouts.sampled_features(network, features, config, generator).float()
        assert self.classifier is not None
        parts = decompose(readouts.read_features(self.classifier, samples).float().softmax(-1))
        return PredictiveDistribution(probabilities, *parts, spread(network.standardise(samples)))

    def _generator(self) -> FeatureGenerator:
        if self.generator is None:
            raise UserError(
                "This student has no generator: use readout 'linear', or distil one with method gendd."
            )
        return self.generator

    def config(self) -> dict[str, Any]:
        """Everything needed to rebuild the student without its weights, as plain JSON."""
        generator: dict[str, Any] | None = None
        if self.generator is not None:
            generator = {
                "condition_width": self.generator.condition_width,
                "feature_width": self.generator.feature_width,
                "num_classes": None if self.classifier is None else self.classifier.out_features,
                "settings": to_dict(self.generator.config),
                "mean_time": self.generator.mean_time,
            }
        return {
            "format": FORMAT,
            "backbone": self.backbone.config(),
            "generator": generator,
            "readout": to_dict(self.settings),
            "linear": self.linear,
            "info": self.info,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], backbone: nn.Module | None = None) -> Student:
        """Rebuild a student from :meth:`config`, with random weights.

        Args:
            config: From :meth:`config`.
            backbone: The network, needed if its architecture isn't known by name; else overrides it.

        Raises:
            UserError: a key is missing, or a value has the wrong type or is out of range.
        """
        described = checked(config)
        backbone = _backbone(described.backbone, backbone)
        generator = classifier = None
        if (saved := described.generator) is not None:
            generator = FeatureGenerator(saved.condition_width, saved.feature_width, saved.settings)
            if saved.mean_time is not None:
                generator.mean_time = saved.mean_time
            if saved.num_classes is not None:
                classifier = nn.Linear(saved.feature_width, saved.num_classes).requires_grad_(False)
        return cls(backbone, generator, classifier, described.readout, described.info, described.linear)

    def save(self, folder: str | Path) -> Path:
        """Write ``model.safetensors`` and ``config.json`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_bytes(folder / "model.safetensors", save(state, {"format": "pt"}))
        write_json(folder / "config.json", self.config())
        return folder


def _backbone(described: dict[str, Any], given: nn.Module | None) -> Backbone:
    if given is None:
        return create_backbone(**described)
    keys = ("feature", "mean", "std", "in_channels", "input_size", "channels")
    backbone = wrap(given, **{key: described[key] for key in keys if key in described})
    backbone.name = described["name"]
    if "projector" in described:
        return project(backbone, classes=described["num_classes"], **described["projector"])
    return backbone


def load(
    path: str | Path, *, device: str | torch.device = "cpu", backbone: nn.Module | None = None
) -> Student:
    """Load a saved student, in eval mode.

    Args:
        path: A run folder, or its ``student`` folder.
        device: Device to load it to.
        backbone: The student's network, into which the saved weights are loaded; needed if it was made in
            Python and its architecture isn't known by name.

    Raises:
        UserError: there is no student at ``path``, its files don't fit together, or its network is neither
            known by name nor given.
    """
    folder = student_folder(path)
    if folder is None:
        raise no_student(path)
    try:
        config = json.loads(read_text(folder / "config.json"))
        described = checked(config)
        if backbone is None:
            check_code(described.backbone["name"], f"Student {str(folder)!r}")
        state = load_file(folder / "model.safetensors")
        check_size(described, sum(each.numel() for each in state.values()))
        student = Student.from_config(config, backbone)
        student.load_state_dict(state)
    except UntrustedCodeError:
        raise
    except UserError as error:
        raise UserError(f"Student {str(folder)!r}: {error}") from error
    except _UNFIT as error:
        expected = "a folder written by gendd" if backbone is None else "the network it was saved with"
        raise UserError(f"Student {str(folder)!r}: expected {expected}; {_reason(error)}") from error
    student.folder = folder
    return student.to(device).eval()


def _reason(error: Exception) -> str:
    # torch names the first parameters that don't fit on the second line
    return " ".join(" ".join(str(error).splitlines()[:2]).split())[:300].rstrip(".") + "; restore its files."
