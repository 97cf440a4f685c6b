"""Numbers with a source: the cells of profiles and runtimes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from octosim.schema import Frozen, Positive, Text

Kind = Literal["datasheet", "measured", "derived", "estimate"]


class Figure(Frozen):
    """One number greater than zero, with where it comes from.

    kind: "datasheet" (the vendor or a publication says so), "measured" (by whom: the source), "derived" (arithmetic on
    sourced figures), "estimate" (nobody published it; the source says why this value).
    """

    value: Positive
    kind: Kind
    source: Text


class Reference(Frozen):
    """The measurement that a ratio was solved from: with the ratio the model predicts it again.

    network: of octosim.cost.reference, or "product" for a matrix product of `size` cubed.  images_s: images a second of it;
    gmac_s: of a product.  engines: those that worked at once, each on its own images; the ratio's own if empty.
    units: of the engine, where not all of them worked.
    """

    network: Text
    images_s: Positive | None = None
    gmac_s: Positive | None = None
    size: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 1
    engines: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    units: Annotated[int, Field(ge=1)] | None = None
    clock_ghz: Positive | None = None


class Ratio(Figure):
    """A fraction of a peak, in (0, 1]; reproduces: what it was solved from."""

    value: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    reproduces: Reference | None = None


class Delay(Figure):
    """A time that may be zero."""

    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Count(Figure):
    """A whole number of things, at least 1."""

    value: Annotated[int, Field(gt=0, le=10**9)]
