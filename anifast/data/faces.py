"""Where a face is in a picture. Finding it needs OpenCV, the extra `faces`; a box that is known needs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anifast.errors import AnifastError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE = 1.3
"""Side of the box around a face, in longer sides of what the detector finds: the hair and the chin come in."""

# Pictures are brought to this shorter side (and at most this longer one), and so much of it is put around, since faces
# that fill a picture are found by what is outside them.
_SIDE, _LONGEST, _BORDER = 320, 1280, 80
_ALT, _DEFAULT = "haarcascade_frontalface_alt2.xml", "haarcascade_frontalface_default.xml"
# Tried one after the other until one finds a face: file, whether contrast is stretched before, how many hits in one
# place make a face, the smallest face in parts of the side, and by how many degrees the picture is turned. The first
# file is seldom wrong; the second finds more faces in bad light, and more that are none. Both want level heads.
_ATTEMPTS = (
    (_ALT, False, 3, 1 / 4, 0),
    (_ALT, False, 5, 1 / 8, 0),
    (_ALT, False, 3, 1 / 4, 15),
    (_ALT, False, 3, 1 / 4, -15),
    (_DEFAULT, True, 5, 1 / 4, 0),
)


@dataclass(frozen=True)
class Box:
    """A square part of a picture: its left upper corner and its side, in pixels."""

    x: int
    y: int
    side: int

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.side}"

    def within(self, width: int, height: int) -> bool:
        """Whether it lies in a picture of this size."""
        return (
            self.side > 0 and min(self.x, self.y) >= 0 and self.x + self.side <= width and self.y + self.side <= height
        )

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """H,W,C -> side,side,C of it; a view."""
        return pixels[self.y : self.y + self.side, self.x : self.x + self.side]


def middle(width: int, height: int) -> Box:
    """The largest centred square of a picture."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side)


def around(face: tuple[int, int, int, int], width: int, height: int, scale: float = SCALE) -> Box:
    """The square around a face.

    Its side is `scale` times the longer side of the face and at most what the picture has. Where it would reach over
    the picture's edge it is moved inside, so it stays a square and nothing is distorted.

    Args:
        face: left, top, width, height of the face.
        width: of the picture; `height` likewise.
        scale: see above.
    """
    left, top, across, down = face
    side = min(round(max(across, down) * scale), width, height)
    x = round(left + (across - side) / 2)
    y = round(top + (down - side) / 2)
    return Box(min(max(x, 0), width - side), min(max(y, 0), height - side), side)


class FaceDetector:
    """Finds faces of people that look into the camera, by OpenCV's Haar cascades. Drawn faces are mostly not found.

    Raises:
        AnifastError: OpenCV is not installed, or one without cascades, as version 5 is.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise AnifastError(f'finding faces needs OpenCV ({error}): pip install "anifast[faces]"') from None
        self._cv2: Any = cv2
        if not hasattr(cv2, "CascadeClassifier"):
            raise AnifastError(
                f"finding faces needs the cascades that OpenCV has up to version 4 and {cv2.__version__} has not: "
                'pip install "anifast[faces]"'
            )
        folder = self._cv2.data.haarcascades
        self._cascades = {name: cv2.CascadeClassifier(folder + name) for name in (_ALT, _DEFAULT)}
        for name, cascade in self._cascades.items():
            if cascade.empty():
                raise AnifastError(
                    f"finding faces: OpenCV {cv2.__version__} is installed without {name}: "
                    'pip install --force-reinstall "anifast[faces]"'
                )

    def find(self, pixels: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """The largest face in a picture.

        Args:
            pixels: uint8 H,W,3, RGB, any size.

        Returns:
            Left, top, width and height in pixels; None: no face found. Faces below an eighth of the shorter side are
            not looked for. Part of a face may lie outside the picture.
        """
        cv2 = self._cv2
        height, width = pixels.shape[:2]
        factor = min(_SIDE / min(height, width), _LONGEST / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), size, interpolation=how)
        grey = cv2.copyMakeBorder(grey, _BORDER, _BORDER, _BORDER, _BORDER, cv2.BORDER_REPLICATE)
        down, across = grey.shape
        for name, stretched, hits, least, degrees in _ATTEMPTS:
            picture = cv2.equalizeHist(grey) if stretched else grey
            turn = cv2.getRotationMatrix2D((across / 2, down / 2), degrees, 1.0)
            if degrees:
                picture = cv2.warpAffine(picture, turn, (across, down), borderMode=cv2.BORDER_REPLICATE)
            smallest = round(least * min(size))
            found = self._cascades[name].detectMultiScale(
                picture, scaleFactor=1.1, minNeighbors=hits, minSize=(smallest, smallest)
            )
            if len(found):
                x, y, w, h = max((tuple(map(int, face)) for face in found), key=lambda face: face[2] * face[3])
                back = cv2.invertAffineTransform(turn)
                middle_x, middle_y = back[:, :2] @ (x + w / 2, y + h / 2) + back[:, 2] - _BORDER
                return (
                    round((middle_x - w / 2) / factor),
                    round((middle_y - h / 2) / factor),
                    round(w / factor),
                    round(h / factor),
                )
        return None
