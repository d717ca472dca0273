"""`image.decode`: the bytes of an image file to a tensor."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    Field,
    FieldType,
    NodeContext,
    NodeError,
    Out,
    Schema,
    Settings,
    column_of,
    node,
)

from ._matching import check_field, check_free

EXAMPLE = """
kind: Topic
name: uploads
fields: {name: string, type: string, content: bytes}
---
kind: Pipeline
name: photos
inputs: {upload: uploads}
nodes:
  photo: {use: filter.when, from: upload, with: {when: type == 'image/png', reason: no photo}}
  pixels: {use: image.decode, from: photo, with: {field: content, as: pixels, mode: gray}, keep: [name]}
tests:
  - name: two dots, white and grey
    given:
      upload:
        - name: dots
          type: image/png
          content: iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAAAAADRSSBWAAAAC0lEQVR4nGP4Xw8AAoABfwxp8mEAAAAASUVORK5CYII=
    expect: {pixels: [{name: dots, pixels: [[255, 127]]}]}
"""

# Channels of each mode, and what Pillow calls it.
_MODES: Final = {"gray": ((), "L"), "rgb": ((3,), "RGB"), "rgba": ((4,), "RGBA")}
# Those of Pillow's modes that convert to 8 bits a channel without a guess.
_PLAIN: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_FORMATS: Final = ("PNG", "JPEG")


class Decode(Settings):
    """Where the bytes are, and what is made of them."""

    field: str = Setting(description="The field that holds the bytes of a PNG or JPEG file.")
    as_: str | None = Setting(
        default=None, alias="as", description="The name of the tensor. Default: that of `field`."
    )
    mode: Literal["gray", "rgb", "rgba"] = Setting(
        default="rgb",
        description="`rgb` and `rgba`: shape [height, width, 3 or 4]; `gray`: [height, width], luma as ITU-R 601-2.",
    )
    size: tuple[Annotated[int, Setting(ge=1)], Annotated[int, Setting(ge=1)]] | None = Setting(
        default=None,
        description="[height, width], which makes the shape fixed. Default: that of each image.",
    )
    fit: Literal["exact", "resize"] = Setting(
        default="exact",
        description="With `size`: an image of another size fails, or is resized (bilinear, without regard to its aspect).",
    )
    max_pixels: int = Setting(
        default=16_000_000,
        ge=1,
        le=200_000_000,
        description="An image with more fails before it is decompressed: a small file may hold a huge image.",
    )


@node("image.decode", settings=Decode, example=EXAMPLE)
class ImageDecode:
    """Decode PNG or JPEG bytes to a uint8 tensor, which takes their place. Needs the extra `image` (Pillow).

    The result has the tensor beside the other fields of the input; `keep:` names fewer, or the bytes too. An
    orientation in the EXIF data is applied. Bytes that are no such image, that are cut off or too large, images of 16 bits a
    channel, and null fail their record.
    """

    def __init__(self, settings: Decode, context: NodeContext) -> None:
        self._settings = settings
        self._field = context.output[settings.as_ or settings.field]
        self._kept = _kept(settings, context.input, context.keep).names
        self._image = _pillow("PIL.Image")
        self._operations = _pillow("PIL.ImageOps")

    @staticmethod
    def contract(settings: Decode, context: ContractContext) -> dict[str, Schema]:
        if context.out is not None:
            message = "out: the fields of this kind follow from its input and settings"
            raise ContractError(message, path=("out",), hint="leave it out")
        found = check_field(settings.field, context.input, "the input", ("with", "field"))
        if found.type.kind != "bytes":
            raise ContractError(
                f"field: '{found.name}' is {found.type.describe()}, not bytes", path=("with", "field")
            )
        if settings.fit == "resize" and settings.size is None:
            raise ContractError("fit: has no effect without size", path=("with", "fit"))
        if context.keep is not None:
            context.kept()
        kept = _kept(settings, context.input, context.keep)
        name = settings.as_ or settings.field
        check_free(name, kept, ("with", "as"), "another name under as, or keep: less")
        size = settings.size or (-1, -1)
        shape = (*size, *_MODES[settings.mode][0])
        tensor = Field(name, FieldType("uint8", shape), found.doc, privacy=found.privacy)
        return {"out": Schema((*kept.fields, tensor))}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        rows, made = [], []
        for row, data in enumerate(batch[self._settings.field]):
            try:
                made.append(self._decode(data))
                rows.append(row)
            except NodeError as error:
                out.fail([row], f"{self._settings.field}: {error.message}", error="ImageError")
        if rows:
            columns = {name: batch[name][rows] for name in self._kept}
            columns[self._field.name] = column_of(self._field.type, made)
            out.emit(columns, rows=rows)

    def _decode(self, data: bytes | None) -> Any:
        """One image as an array. Raises NodeError for what is none."""
        if data is None:
            raise NodeError("null is no image")
        try:
            with self._image.open(io.BytesIO(data), formats=_FORMATS) as image:
                self._check(image)
                image.load()
                turned = self._operations.exif_transpose(image)
        except NodeError:
            raise
        except Exception as error:  # Pillow's errors for broken files are of many kinds
            raise NodeError(f"{len(data)} bytes are no {' or '.join(_FORMATS)} image: {error}") from error
        turned = turned.convert(_MODES[self._settings.mode][1])
        size = self._settings.size
        if size is not None and (turned.height, turned.width) != size:
            if self._settings.fit == "exact":
                raise NodeError(f"the image is {turned.height} x {turned.width}, not {size[0]} x {size[1]}")
            turned = turned.resize((size[1], size[0]), self._image.Resampling.BILINEAR)
        return np.asarray(turned, dtype=np.uint8)

    def _check(self, image: Any) -> None:
        pixels = image.width * image.height
        if pixels > self._settings.max_pixels:
            raise NodeError(
                f"{image.width} x {image.height} pixels, at most {self._settings.max_pixels} are read"
            )
        if image.mode not in _PLAIN:
            raise NodeError(f"an image of mode {image.mode} is not of 8 bits a channel")


def _kept(settings: Decode, schema: Schema, keep: tuple[str, ...] | None) -> Schema:
    return schema.select(keep) if keep is not None else schema.without([settings.field])


def _pillow(module: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NodeError("image.decode needs Pillow", hint="pip install 'kafka-dataflow[image]'") from error
