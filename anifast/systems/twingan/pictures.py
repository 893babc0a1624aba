"""Pictures of both domains: where they are, how they are scaled, and the batches that a phase learns from.

A data folder has `source/train`, `target/train` and, for the sample sheets, `source/val`, `target/val`; or trainA,
trainB, testA, testB, as other systems have it. Pictures are decoded once, at the side of the last phase; those of the
phases before it are averages of 2x2 of their pixels, level by level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anifast.data import folders
from anifast.data.augment import color_jitter, random_resized_crop
from anifast.data.folders import counted, printable, read_image, resize_tf1, scan, to_tensor, walk
from anifast.data.packed import PackedImages, check_digests, digests, pack, spread
from anifast.data.samplers import ClassSampler
from anifast.data.tags import TagList, chosen, read_taglist, read_tags
from anifast.engine.distributed import Team, alone
from anifast.errors import AnifastError, DataError, ImageError
from anifast.systems.twingan.config import REMEMBERING, STAGES, WORDS, Config, domain_of

#: Folders of a domain's pictures, to train on and to show, by layout; the first that is there counts. Index: domain.
_LAYOUTS = (
    (("source/train", "source/val"), ("trainA", "testA")),
    (("target/train", "target/val"), ("trainB", "testB")),
)
_TAGS, _TAGLIST = "tags.tsv", "taglist.tsv"
#: So many of what is wrong are named in an error.
_NAMED = 3


class Batch(NamedTuple):
    """Pictures of one step.

    Attributes:
        source: [n,3,side,side] in [0, 1], augmented.
        target: the same of the other domain; nothing pairs them.
        tags: [n,T] in [0, 1], of the target pictures, or None.
    """

    source: Tensor
    target: Tensor
    tags: Tensor | None


def find(root: Path, domain: str, split: str = "train") -> Path | None:
    """The folder with a domain's pictures.

    Args:
        root: the data folder.
        domain: "source" or "target", or as `domain_of` reads it.
        split: "train" or "val".

    Returns:
        The folder, or None where there is none or, of "val", nothing is in it. Pictures to show stand beside those to
        train on, if there are such.

    Raises:
        AnifastError: there is no such domain.
        ValueError: there is no such split.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}; expected train or val")
    layouts = _LAYOUTS[domain_of(domain)]
    train = next((layout for layout in layouts if (root / layout[0]).is_dir()), None)
    if split == "train":
        return None if train is None else root / train[0]
    there = (root / layout[1] for layout in ([train] if train else layouts))
    return next((folder for folder in there if folder.is_dir() and next(walk(folder), None) is not None), None)


def preprocess(images: Tensor, hw: int, resize: str = "antialias") -> Tensor:
    """Scale whole pictures, for inference, in floats all the way.

    Args:
        images: N,3,H,W of any size, uint8, or floats in [0, 1].
        hw: the side of the model's pictures.
        resize: a run's setting: "antialias" (bicubic) or "tf1" (see `resize_tf1`). The aspect is ignored.

    Returns:
        float32 N,3,hw,hw in [0, 1].
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    if images.shape[-2:] == (hw, hw):
        scaled = images.to(torch.float32)
    elif resize == "tf1":
        scaled = resize_tf1(images, hw)
    else:
        scaled = F.interpolate(images.to(torch.float32), size=(hw, hw), mode="bicubic", antialias=True)
    return (scaled / scale).clamp(0, 1)


def whole(image: Image.Image, hw: int, resize: str = "antialias") -> Tensor:
    """A picture of mode RGB, of any size, as a run shows it of itself: float32 3,hw,hw in [0, 1].

    As `preprocess`, but that "antialias" is rounded to 8 bits, as training pictures are.
    """
    if resize == "tf1":
        return preprocess(to_tensor(image)[None], hw, resize)[0]
    return to_tensor(folders.resize(image, hw)).to(torch.float32) / 255


def share_of(config: Config, side: int, team: Team, batch: int | None = None) -> int:
    """How many pictures per domain of each batch are one process's.

    Args:
        config: batch, norm.
        side: of the phase's pictures.
        team: the processes that share each batch.
        batch: pictures per domain in the joined batch; None: the settings'.

    Raises:
        AnifastError: the batch cannot be shared out evenly, or leaves a process too few for the norm's statistics.
    """
    joined = batch or config.batch_of(side)
    share = team.portion(joined)
    if share == 1 and config.norm in REMEMBERING:
        left = f" leaves 1 picture to each of {team.world} processes, which" if team.world > 1 else ": 1 picture"
        raise AnifastError(
            f"setting batch: {joined} at {side} px{left} has no statistics that {config.norm} could take at "
            f"the smallest sizes; take --batch {2 * team.world} or more, or --norm instance_norm"
        )
    return share


class Pictures:
    """Batches of both domains for one phase, augmented on the device.

    Each domain is walked in a shuffled order of its own. A picture's augmentation depends on the run's seed, the phase
    and the picture's number in it, and on nothing else.

    Args:
        root: the data folder.
        config: sizes, augmentation, batch, seed, tags.
        side: of the phase's pictures.
        device: where the batches go.
        team: the processes that share each batch; None: one.
        batch: pictures per domain in the joined batch; None: the settings'.
        stage: the phase, for an order of its own; None: the stable one of this side.

    Raises:
        DataError: a folder of training pictures is missing, has fewer than a batch, or holds none that can be read; or
            the tags are missing or do not fit.
        AnifastError: the batch cannot be shared out.

    Attributes:
        source: packed training pictures.
        target: the same of the other domain.
        tags: what `Batch.tags` is about, or None.
        untagged: target pictures without tags, whose vectors are zero.
    """

    def __init__(
        self,
        root: Path,
        config: Config,
        side: int,
        device: torch.device,
        team: Team | None = None,
        batch: int | None = None,
        stage: str | None = None,
    ) -> None:
        self._team = team = team or alone(device)
        self._batch = batch or config.batch_of(side)
        self._share = share_of(config, side, team, batch)
        self._root, self._config, self._side, self._device = root, config, side, device
        self._folders = _training(root)
        self.source, self.target = (_packed(folder, config, side) for folder in self._folders)
        for folder, packed in zip(self._folders, (self.source, self.target), strict=True):
            if len(packed) < self._batch:
                least = 2 if config.norm in REMEMBERING else 1
                smaller = f", or take --batch {len(packed)}" if len(packed) >= least else ""
                raise DataError(
                    f"{folder}: {counted(len(packed))} that can be read, and a batch has {self._batch} different ones; "
                    f"add pictures{smaller}"
                )
        self.tags: TagList | None = None
        self.untagged = 0
        self._vectors: NDArray[np.float32] | None = None
        if config.tags:
            self.tags, self._vectors = _tags(root, self._folders[1], self.target, config.tag_threshold)
            self.untagged = int((self._vectors == 0).all(1).sum())
        # Every phase has an order and augmentations of its own, or short ones would all see the same few pictures.
        self._phase = STAGES.index(stage or str(side))
        self._samplers = [
            ClassSampler(
                np.zeros(len(packed), np.int64),
                self._share,
                (config.seed + 2 * self._phase + domain) % 2**63,
                team.rank,
                team.world,
            )
            for domain, packed in enumerate((self.source, self.target))
        ]
        self._drawn = 0

    def next(self) -> Batch:
        """This process's part of the next batch."""
        source, target = (sampler.next_batch() for sampler in self._samplers)
        # Both domains at once: at small sizes it is the number of operations that takes its time.
        u8 = torch.cat([self.source.batch(source), self.target.batch(target)]).to(self._device, non_blocking=True)
        x_s, x_t = self._augmented(u8).split(self._share)
        self._drawn += self._batch
        tags = None if self._vectors is None else torch.from_numpy(self._vectors[target]).to(self._device)
        return Batch(x_s, x_t, tags)

    def _augmented(self, images: Tensor) -> Tensor:
        """[source; target] as float32 in [0, 1], cropped, mirrored and with other colours, as the settings say."""
        c, n = self._config, self._share
        first = (c.seed % 2**24) * 2**39 + self._phase * 2**35 + self._drawn + self._team.rank * n
        seeds = torch.arange(first, first + n, device=self._device)
        seeds = torch.cat([seeds, seeds + 2**34])
        x = random_resized_crop(
            images.to(torch.float32) / 255,
            self._side,
            seeds,
            least=c.crop,
            flip=0.5 if c.flip else 0.0,
            half_pixel=c.resize != "tf1",
        ).clamp_(0, 1)
        if c.jitter == "both":
            return color_jitter(x, seeds)
        if c.jitter == "source":
            return torch.cat([color_jitter(x[:n], seeds[:n]), x[n:]])
        return x

    def shown(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures for the sample sheets, always the same, of `val` (else of `train`), each `whole`.

        Returns:
            Source and target, up to `count` each, float32 [n,3,side,side] in [0, 1] on the CPU.
        """
        found = []
        for word, training, packed in zip(WORDS, self._folders, (self.source, self.target), strict=True):
            val = find(self._root, word, "val")
            paths = scan(val).paths if val is not None else [training / name for name in packed.paths]
            found.append(torch.stack(_first_good(paths, count, self._side, self._config.resize)))
        return found[0], found[1]

    def measured(self, count: int) -> Batch:
        """Training pictures that statistics of what is deployed are taken of: always the same, whole, not augmented.

        Args:
            count: of each domain; fewer where there are fewer.
        """
        rows = [torch.tensor(spread(len(packed), count)) for packed in (self.source, self.target)]
        source, target = (
            preprocess(packed.batch(chosen), self._side, self._config.resize)
            for packed, chosen in zip((self.source, self.target), rows, strict=True)
        )
        return Batch(source, target, None if self._vectors is None else torch.from_numpy(self._vectors)[rows[1]])

    def skipped(self) -> dict[str, str]:
        """Path under the data folder -> reason, of training pictures that cannot be used."""
        both = zip(self._folders, (self.source, self.target), strict=True)
        return {
            f"{folder.relative_to(self._root).as_posix()}/{path}": why
            for folder, packed in both
            for path, why in packed.skipped.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        both = digests(self.source), digests(self.target)
        state = {"samplers": [one.state_dict() for one in self._samplers], "drawn": self._drawn}
        state.update({key: [one[key] for one in both] for key in both[0]})
        if self._vectors is not None:
            state["tags"] = hashlib.sha256(self._vectors.tobytes()).hexdigest()[:16]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folders hold other pictures, or the pictures other tags, than then.
        """
        for i, packed in enumerate((self.source, self.target)):
            then = {key: state[key][i] for key in digests(packed)}
            check_digests(packed, then, self._folders[i].relative_to(self._root).as_posix(), "this phase")
        if state.get("tags") != self.state_dict().get("tags"):
            raise DataError(
                f"{_TAGS} says other things than when this phase began, so it cannot go on as if nothing had happened. "
                "Put the old file back, or start a new run"
            )
        for sampler, place in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state_dict(place)
        self._drawn = int(state["drawn"])


def _training(root: Path) -> tuple[Path, Path]:
    """The folders of training pictures.

    Raises:
        DataError: one is missing.
    """
    found = [find(root, word) for word in WORDS]
    missing = [
        " or ".join(train for train, _ in layouts)
        for layouts, folder in zip(_LAYOUTS, found, strict=True)
        if folder is None
    ]
    if missing:
        raise DataError(
            f"{printable(root)}: no folder {', and no folder '.join(missing)}. Expected source/train and target/train "
            "with pictures (or trainA and trainB), and source/val, target/val (testA, testB) for the samples"
        )
    assert found[0] is not None and found[1] is not None
    return found[0], found[1]


def _packed(folder: Path, config: Config, side: int) -> PackedImages:
    """A domain's training pictures, larger than `side` by what is cropped."""
    loaded, top = int(side / config.crop), int(config.size / config.crop)
    if config.resize == "tf1":
        return pack(folder, loaded, how="tf1")  # whose pixels are no averages
    if loaded * (config.size // side) != top:  # sides are rounded down, and do not double
        return pack(folder, loaded)
    return pack(folder, loaded, top=top)


def _first_good(paths: Sequence[Path], count: int, side: int, resize: str) -> list[Tensor]:
    """Up to `count` pictures evenly spread; where one cannot be read, the next that can stands in for it."""
    taken: set[int] = set()
    found = []
    for start in spread(len(paths), count):
        for step in range(len(paths)):
            place = (start + step) % len(paths)
            if place in taken:
                continue
            taken.add(place)
            try:
                found.append(whole(read_image(paths[place]), side, resize))
            except ImageError:
                continue
            break
    if not found:
        raise DataError(f"{printable(paths[0].parent)}: none of its pictures can be read")
    return found


def tags_file(root: Path) -> Path | None:
    """The data folder's tags.tsv: in target/, or beside trainB. Paths in it begin where it is."""
    folder = find(root, "target") or find(root, "target", "val")
    path = None if folder is None else folder.parent / _TAGS
    return path if path is not None and path.is_file() else None


def _tags(root: Path, folder: Path, packed: PackedImages, threshold: float) -> tuple[TagList, NDArray[np.float32]]:
    """What the target pictures' tags are about, and their vectors [pictures, tags], as they count.

    Raises:
        DataError: there is no file, something in it is wrong, or it is not about these pictures.
    """
    path = tags_file(root)
    if path is None:
        beside = folder.parent / _TAGS
        raise DataError(
            f"setting tags: no {printable(beside)}; write one ({folder.name}/NAME.png, a tab, then tags parted by "
            "commas), or leave --tags out"
        )
    listed = path.with_name(_TAGLIST)
    taglist = read_taglist(listed) if listed.is_file() else TagList.DEFAULT
    told = read_tags(path, taglist)
    base = folder.relative_to(path.parent).as_posix()
    names = [f"{base}/{name}" for name in packed.paths]
    here = set(names)
    missing = [name for name in told if name not in here and not (path.parent / name).is_file()]
    if missing:
        first = ", ".join(printable(name) for name in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise DataError(
            f"{printable(path)}: {len(missing)} of its {counted(len(told))} "
            f"{'is' if len(missing) == 1 else 'are'} not in {printable(path.parent)}: {first}{more}. Paths begin at "
            "that folder; put the pictures there, or take their rows out"
        )
    if not here & told.keys():
        raise DataError(
            f"{printable(path)}: has no row for any picture of {printable(folder)}; theirs begin with {base}/"
        )
    vectors = np.zeros((len(names), len(taglist)), np.float32)
    for row, name in enumerate(names):
        if name in told:
            vectors[row] = told[name]
    vectors = chosen(vectors, taglist, threshold)
    if not vectors.any():
        raise DataError(
            f"{printable(path)}: of no picture of {printable(folder)} the colours of hair and eyes reach a score of "
            f"{threshold:g}, so that no tags count; lower --tag-threshold, or add such tags"
        )
    return taglist, vectors
