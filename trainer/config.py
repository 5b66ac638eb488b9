"""Everything that decides what a run trains: one flat dataclass, which is also a run folder's config.yaml.

Letters: N images, m crops drawn per image, B crops in a batch, C classes. An epoch is N crops seen; a pass
loads every image once and sees m crops of each, so one pass is m epochs (FKD 3.3).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml

from labelstore.errors import MAX_TEMPERATURE, MIN_TEMPERATURE, UsageError
from labelstore.untrusted.yaml_files import read_mapping
from trainer.config_checks import check_config
from trainer.field_types import (
    Count,
    NotNegative,
    Positive,
    PositiveOrNone,
    Range,
    Share,
    Whole,
    as_declared,
    at_most,
    law,
)
from trainer.phases import Mixing, Phase, Supervision, phase_config, read_phases

Order = Literal["random", "easy-to-hard", "hard-to-easy"]
Optimizer = Literal["sgd", "nesterov", "adam", "adamw", "adamp", "lamb"]
Schedule = Literal["cosine", "linear", "step", "multistep", "constant"]
SoftLoss = Literal["cross-entropy", "kl"]
EmbeddingDistance = Literal["cosine", "mse"]
Log = Literal["tensorboard", "wandb"]
Autocast = Literal["auto", "none", "bf16", "fp16"]
DecodeDevice = Literal["cpu", "device"]
LoaderKind = Literal["threads", "process"]
MayDiffer = Literal[
    "accumulation_steps",
    "amp",
    "channels_last",
    "compile_model",
    "decode_device",
    "grad_checkpointing",
]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
CheckpointWeights = Literal["ema", "raw"]
CropMode = Literal["center", "squash", "border"]

_TEMPERATURE = law(
    f"give a number within {MIN_TEMPERATURE} and {MAX_TEMPERATURE}, or leave it out",
    lambda value: value is None or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE,
)
_EACH_ABOVE_0 = law("each must be above 0", lambda values: min(values, default=1) > 0)
_BETAS = law("each must be in [0, 1)", lambda betas: 0 <= min(betas) <= max(betas) < 1)
_AREA = law(
    "give (low, high) with 0 < low <= high <= 1", lambda value: 0 < value[0] <= value[1] <= 1
)
_PROBABILITIES = law(
    "give (low, high) with 0 <= low <= high <= 1", lambda value: 0 <= value[0] <= value[1] <= 1
)
_JITTER = law(
    "give three values within 0 and 1, and a hue within 0 and 0.5",
    lambda value: min(value) >= 0 and max(value) <= 1 and value[3] <= 0.5,
)

NOT_WRITTEN = {"labels_made_at": 1.0, "drawing_order": 1}
"""Entries of the provenance whose absence means something: older runs did not write them down, and had these."""

_WITHOUT_EFFECT = (
    "data",
    "train",
    "val",
    "eval_every",
    "store",
    "device",
    "workers",
    "loader",
    "eval_batch_size",
    "output",
    "resume",
    "may_differ",
    "checkpoint_minutes",
    "scratch",
    "keep_draws",
    "loggers",
)


def evaluation_split(data: Path) -> Path:
    """Images to evaluate on in a data set's folder: val, or validation where only that is there."""
    usual, long = data / "val", data / "validation"
    return long if long.is_dir() and not usual.is_dir() else usual


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Parameters of one run, checked when made: UsageError in one line for values that cannot be meant."""

    # what is learnt from
    data: Path | None = None
    """Folder of images with train/ (and val/ or validation/) inside, one folder per class."""
    train: Path | None = None
    """Images to train on: a folder, list, tar shards or data set, as `labelstore create --images` takes them; None is
    train/ in `data`, or `data` itself where there is none."""
    val: Path | None = None
    """Images to evaluate on, of any such kind; None is val/ in `data`, else validation/, where there is one."""
    store: Path | None = None
    """Label store; None for `labels="ground-truth"` and "teacher" on fresh crops only."""
    labels: Supervision = "fkd"
    """fkd: stored soft labels; ferkd: the same under a mask (FerKD Eq. 4); ensemble: the mean of several label sets;
    labelmap: pooled from label maps (ReLabel); ssl: outputs of a projection head (S2-BNN); embedding: a point in space
    (CLIP, DINO); teacher: an online teacher (vanilla distillation, FunMatch); ground-truth: class folders, on fresh
    crops, or with a store on its crops."""
    label_set: str | None = None
    """Label set by name; None is the only one of the store. Of an ensemble all names, joined by commas."""
    mask: str | None = None
    """Calibration mask by name; needed by ferkd. Of an ensemble one per label set, joined by commas, `-` for none."""
    ensemble_weights: Annotated[
        tuple[float, ...], law("each must be above 0", lambda w: min(w, default=1) > 0)
    ] = ()
    """One per label set of an ensemble; empty are equal ones."""
    teacher: str | None = None
    """Online teacher: timm:NAME, torchvision:NAME, a run folder, package.module:function or a checkpoint."""
    teacher_model: str | None = None
    """Network of a checkpoint given as teacher: timm:NAME or torchvision:NAME."""
    order: Order = "random"
    """Order of each image's stored crops: random, or a curriculum over the whole run by how sure the teacher is (FerKD
    4.3)."""
    probability_range: Annotated[tuple[float, float], _PROBABILITIES] = (0.0, 1.0)
    """Stored crops whose largest probability lies outside are not drawn (FerKD Fig. 5)."""
    temperature: Annotated[float | None, _TEMPERATURE] = None
    """T of the teacher's logits, by which the student's are divided too: labels made at T0 become p^(T0/T). None is T0,
    and 1 for an online teacher."""
    label_smoothing: Share = 0.0
    """Smoothing s of ground-truth labels: 1 - s + s/C at the class, s/C elsewhere (as torch.nn.CrossEntropyLoss)."""
    ground_truth_weight: Share = 0.0
    """Share of the ground truth's loss: alpha of FerKD Eq. 1, 1 - lambda of FKD Eq. 1; the labels' is the rest."""
    soft_loss: SoftLoss = "cross-entropy"
    """Loss on soft labels; kl subtracts their entropy, which moves the value and no gradient."""
    embedding_loss: EmbeddingDistance = "cosine"
    """Loss of labels="embedding": one minus the cosine, or the mean squared error over its values."""
    temperature_squared: bool = True
    """Multiply the labels' loss by temperature^2, so that its gradient keeps its size (Hinton et al. 2015)."""
    discriminator: bool = False
    """Add the loss of a small network that learns to tell the student's probabilities from the labels (MEAL V2)."""
    allow_incomplete: bool = False
    """Train on the committed labels of an unfinished store."""
    allow_empty_images: bool = False
    """Accept that more than 1 % of the images have no usable crop."""

    # which network
    model: str = "resnet50"
    """timm name, torchvision:NAME, or `package.module:function` that returns a network and takes `num_classes`."""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the network, e.g. {"drop_path_rate": 0.1}."""
    projection_head: bool = False
    """For ssl and embedding: a hidden layer below the outputs; those of ssl are scaled to unit length (MoCo v2,
    S2-BNN)."""
    num_classes: Annotated[int | None, law("give 2 or more", lambda c: c is None or c > 1)] = None
    """C; None is filled in from the data."""
    pretrained: bool = False
    """Start from timm's or torchvision's weights, with a new classifier for other classes (fine-tuning)."""
    initial_checkpoint: Path | None = None
    """Start from these weights (fine-tuning)."""
    checkpoint_weights: CheckpointWeights | None = None
    """Which weights of teacher and initial_checkpoint, where they hold a moving average too: ema takes it, raw the
    plain weights; None takes the plain ones and says so."""

    # which pixels
    input_size: Annotated[Count, at_most(1 << 14)] = 224
    """Side of the square that the network sees, pixels."""
    interpolation: Interpolation = "bilinear"
    """Resampling of training crops and of evaluation; the teacher's own, for labels to match the pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per RGB channel, of pixels in [0, 1]."""
    std: Annotated[
        tuple[float, float, float], law("each must be above 0", lambda std: min(std) > 0)
    ] = (0.229, 0.224, 0.225)
    """Per RGB channel, of pixels in [0, 1]."""
    crop_pct: Annotated[
        float, law("it must be above 0, and at most 2", lambda side: 0 < side <= 2)
    ] = 0.875
    """Evaluation: side of the centre crop over the side that the image is resized to; above 1 it is padded."""
    crop_mode: CropMode = "center"
    """Evaluation, as timm's: center resizes the shorter side, border the longer one and pads, squash both."""
    crops_per_image: Annotated[Count, at_most(100_000)] = 4
    """m, crops of one image in a batch."""
    scale: Annotated[tuple[float, float], _AREA] = (0.08, 1.0)
    """Area of a ground-truth crop over the image's; stored crops have their own."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width over height of a ground-truth crop."""
    flip_prob: Share = 0.5
    """Probability that a ground-truth crop is flipped."""
    mixing: Mixing = "none"
    """selfmix mixes crops of one image (FerKD 3.4), the others any two crops of a batch."""
    mixing_prob: Share = 1.0
    """Probability that a batch (mixup, cutmix) or an image (selfmix) is mixed."""
    mixing_off_epochs: Whole = 0
    """Last epochs that are not mixed; of a pass that begins before them, all is mixed."""
    mix_again: bool = False
    """Mix crops that were mixed already before the teacher saw them (`labelstore create --mix`); refused without."""
    mixup_alpha: Positive = 0.8
    """Beta(alpha, alpha) of mixup's weight."""
    cutmix_alpha: Positive = 1.0
    """Beta(alpha, alpha) of the kept area of cutmix and selfmix."""
    color_jitter: Annotated[tuple[float, float, float, float], _JITTER] = (0.0, 0.0, 0.0, 0.0)
    """Brightness, contrast, saturation (factors within 1 +- value) and hue (turn within +- value); student only."""
    color_jitter_prob: Share = 1.0
    """Probability that a crop's colours are jittered."""
    grayscale_prob: Share = 0.0
    """Probability that a crop becomes grey; student only."""
    blur_prob: Share = 0.0
    """Probability that a crop is blurred (Gaussian); student only."""
    blur_sigma: Range = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, pixels of the resized crop."""
    lighting: NotNegative = 0.0
    """Standard deviation of lighting noise along the principal colours of ImageNet (Krizhevsky et al. 2012); 0 is off;
    student only."""
    rand_augment: Annotated[float, law("it must be within 0 and 10", lambda m: 0 <= m <= 10)] = 0.0
    """Magnitude of RandAugment, 0 to 10; 0 is off; student only."""
    rand_augment_std: NotNegative = 0.5
    """Standard deviation of RandAugment's magnitude."""
    rand_augment_ops: Whole = 2
    """RandAugment's operations per crop."""
    erasing_prob: Share = 0.0
    """Probability that a box of a crop is erased with noise (random erasing); student only."""

    # how long, how fast
    batch_size: Annotated[Count, at_most(1 << 24)] = 1024
    """B, crops per optimiser step over all ranks and accumulation steps; a multiple of m."""
    accumulation_steps: Annotated[Count, at_most(1 << 20)] = 1
    """Forward passes per optimiser step."""
    epochs: Annotated[Count, at_most(1_000_000)] = 300
    """N crops each, single-crop passes included; rounded up to whole passes of m epochs. Of a run with phases theirs
    together."""
    phases: tuple[Phase, ...] = ()
    """Parts that learn from different labels one after the other, LABELS:EPOCHS or LABELS:EPOCHS:MIXING each
    (HALD: fkd:75,ground-truth:150:cutmix,fkd:75). A file gives each further settings. Ground truth is learnt on fresh
    crops."""
    single_crop_first: Whole = 0
    """Passes of one crop per image before the others (a warm-up, as in the FKD release)."""
    single_crop_last: Whole = 0
    """Passes of one crop per image after the others (as in the FKD release)."""
    optimizer: Optimizer = "sgd"
    """sgd has plain momentum, nesterov Nesterov's; adamp is AdamP with Nesterov's momentum (Heo et al. 2021)."""
    lr: Positive = 0.1
    """Peak learning rate, of the whole batch: it is not scaled."""
    weight_decay: NotNegative = 1e-4
    """Not applied to biases and norms by adam, adamw and lamb (timm); to everything by sgd, nesterov and adamp. adamw
    and adamp take `lr` times this off a weight in a step: lr * weight_decay of a release whose decay leaves lr out."""
    momentum: Share = 0.9
    """Momentum of sgd and nesterov."""
    betas: Annotated[
        tuple[float, float], law("each must be in [0, 1)", lambda b: 0 <= min(b) <= max(b) < 1)
    ] = (0.9, 0.999)
    """Betas of adam, adamw, adamp and lamb."""
    layer_decay: PositiveOrNone = None
    """Factor of the learning rate from one layer group to the one below it (fine-tuning)."""
    scheduler: Schedule = "cosine"
    """step multiplies by `decay_rate` every `decay_epochs`, multistep at each of `milestones`."""
    min_lr: NotNegative = 0.0
    """Where cosine and linear end."""
    cosine_eta: Positive = 1.0
    """Length of the cosine over the run's (eta of SRe2L's successors): a run of 2 ends half way down."""
    warmup_epochs: NotNegative = 0.0
    """Linear rise from `warmup_lr`."""
    warmup_lr: NotNegative = 1e-6
    """Where warm-up begins."""
    warmup_prefix: bool = False
    """The schedule begins when warm-up has ended and spreads over the epochs that are left; otherwise it runs from the
    first epoch on, and warm-up replaces its beginning."""
    warmup_serrated: bool = False
    """With `serrated`, the rate is constant within a pass of the warm-up too: one stair per pass."""
    decay_epochs: Positive = 30.0
    """Epochs between two steps of scheduler step."""
    decay_rate: NotNegative = 0.1
    """Factor of schedulers step and multistep."""
    milestones: Annotated[
        tuple[int, ...], law("give them in order", lambda m: list(m) == sorted(m))
    ] = ()
    """Epochs, of scheduler multistep; a pass of m epochs has the rate of its first one."""
    serrated: bool = True
    """Learning rate constant within a pass, as in FKD 3.3; otherwise it moves with every step."""
    clip_grad: PositiveOrNone = None
    """Largest norm of the gradient; None leaves it."""
    ema_decay: Annotated[
        float | None, law("give above 0, below 1", lambda d: d is None or 0 < d < 1)
    ] = None
    """Keep a moving average of the weights too (EMA), evaluated and saved beside them; None keeps none."""
    sync_batchnorm: bool = False
    """Batch norm over the crops of all ranks (on GPUs) and not of each rank alone."""

    # where and with what
    seed: Annotated[Whole, at_most((1 << 63) - 1)] = 0
    """Seed of initial weights, drawing order, mixing and dropout."""
    device: str = "auto"
    """torch device; auto is a GPU (cuda, xpu or mps) where there is one, otherwise cpu."""
    amp: Autocast = "auto"
    """Autocast of the forward pass; auto is bf16 on a GPU that computes in it, fp16 (with a loss scaler) on an
    older one, none on a CPU, and stays what it was when the run began."""
    channels_last: bool = True
    """Memory format of network and batches."""
    compile_model: bool = False
    """torch.compile."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass and keep few of them: less memory, a third more time (timm)."""
    workers: Annotated[Count, at_most(1024)] = 4
    """Threads that decode images."""
    loader: LoaderKind = "threads"
    """Whose threads these are: this process's, or those of one process beside it, which share nothing with the training
    loop but a file in `scratch`; the same batches either way."""
    decode_device: DecodeDevice = "cpu"
    """Where training images are decoded and cropped; device is `device`, for JPEGs whose pixels are then those of the
    CPU but for 1 of 255, which is measured first."""
    eval_every: Count = 1
    """Passes from one evaluation to the next; the last pass is always followed by one."""
    eval_batch_size: Annotated[Count, at_most(1 << 24)] = 256
    """Images."""
    output: Path | None = None
    """Run folder; None keeps nothing."""
    resume: bool = False
    """Continue from the run folder's last checkpoint."""
    may_differ: tuple[MayDiffer, ...] = ()
    """With resume: settings that need not be those of the run so far, e.g. on other hardware; its figures are then no
    more those of one that went through, bit for bit."""
    checkpoint_minutes: NotNegative = 20.0
    """Minutes from one checkpoint inside a pass to the next, longer where they would take 2 % of the time; 0 saves
    at the ends of passes only."""
    scratch: Path | None = None
    """Where a pass's labels are laid out; None is the temporary folder. Draw files of masks, ensembles, curricula and
    probability ranges stay here for later runs."""
    keep_draws: NotNegative = 50.0
    """Gigabytes of draw files kept in `scratch`, least recently used ones go first; 0 keeps none."""
    loggers: tuple[Log, ...] = ()
    """Where rows of summary.csv go too: tensorboard, wandb."""

    # what the run writes down about itself
    class_names: tuple[str, ...] = ()
    """Names of the C outputs in order; filled in from the data."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Label-set uuid and digests, versions: plain values, filled in when the run starts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", read_phases(self.phases))
        # lists and paths come as text from YAML and from people; tuples keep equality plain
        for name, value in as_declared(self).items():
            object.__setattr__(self, name, value)
        if self.phases and self.epochs == type(self).epochs:
            object.__setattr__(self, "epochs", sum(phase.epochs for phase in self.phases))
        check_config(self)

    @property
    def multi_crop_passes(self) -> int:
        """Passes of m crops: what single-crop passes leave of the epochs, over m, rounded up."""
        singles = self.single_crop_first + self.single_crop_last
        return -(-(self.epochs - singles) // self.crops_per_image)

    @property
    def whole_epochs(self) -> int:
        """Epochs really trained for: `epochs`, rounded up to whole passes; those of phases are as given."""
        if self.phases:
            return self.epochs
        singles = self.single_crop_first + self.single_crop_last
        return singles + self.multi_crop_passes * self.crops_per_image

    @property
    def temperature_in_force(self) -> float:
        """The temperature of labels and student: `temperature`, else the one that the labels were made at, else 1."""
        made_at: float = self.provenance.get("temperature", 1.0)
        return made_at if self.temperature is None else self.temperature

    def of_phases(self) -> tuple[Self, ...]:
        """The settings of each phase; of a run without phases its own."""
        return tuple(phase_config(self, n) for n in range(len(self.phases))) or (self,)

    def for_another_run(self) -> Self:
        """The same settings without what a run filled in, for other data or another start."""
        return self.from_mapping(without_filled_in(self.to_mapping()))

    def differences(self, other: Self) -> tuple[str, ...]:
        """Names of the fields that differ and change what is learnt: a resumed run must have none.

        Of the provenance those of its entries ("provenance.images") that both of them have.
        """
        # as plain values, since one of the two usually comes out of a file, tuples as lists
        mine, theirs = self.decisive(), other.decisive()
        data, before = mine.pop("provenance"), theirs.pop("provenance")
        changed = [name for name in mine if mine[name] != theirs[name]]
        # a run of an older trainer did not write all of them down
        data, before = {**NOT_WRITTEN, **data}, {**NOT_WRITTEN, **before}
        changed += [
            f"provenance.{name}" for name in data if name in before and data[name] != before[name]
        ]
        return tuple(changed)

    def decisive(self) -> dict[str, Any]:
        """Every setting that changes what is learnt, as plain values."""
        values = self.to_mapping() | {"temperature": self.temperature_in_force}
        # a newer torch may go on with an older one's run, and what else was not as at the beginning was allowed
        for name in ("versions", "amp", "changed", "temperature"):
            values["provenance"].pop(name, None)
        return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}

    def to_mapping(self) -> dict[str, Any]:
        """Every field as a plain value: paths as text, tuples as lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The config that `to_mapping` described; missing fields take their defaults.

        UsageError names a field that does not exist or a value that does not fit its type.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name)[:80], known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"{str(name)[:80]}: no such setting of a run{hint}")
        return cls(**values)

    def to_yaml(self) -> str:
        """Text of config.yaml."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True, width=100)

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """The config in a file; RejectedInput if it is no YAML mapping, UsageError for its values."""
        return cls.from_mapping(read_mapping(path))


FILLED_IN = ("num_classes", "class_names", "provenance", "resume", "may_differ")
"""Fields of a run's config.yaml that its data filled in, or that say how it was called."""


def without_filled_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config file without what a run filled in: its classes, and where its labels came from.

    A file that no run wrote has nothing filled in, and stays as it is.
    """
    filled = FILLED_IN if values.get("provenance") else ()
    return {name: value for name, value in values.items() if name not in filled}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Phase):
        return value.own
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
