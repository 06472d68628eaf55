"""The numbers that a verdict rests on, each with its reason.

What counts as exact, as solved, as leaked, and how many null runs tell that from chance, is decided here and nowhere
else. Attacks, controls, evaluation and reports read it; none of them has a second opinion. Numerical constants of one
method, which decide how it goes on and not what is said of the result, stay with the method.

Shares and relative costs are squared errors without a unit; what ends in `_DB` is in decibels of PSNR,

    PSNR = -10 log10 mean (x^ - x*)^2,        pixels in [0, 1],

so that 3 dB are half the squared error, 10 dB a tenth, and 40 dB a root mean squared error of 1 % of the range.
"""

__all__ = [
    "AGREEMENT_DB",
    "CALLS_LEVEL",
    "CLEARLY_DB",
    "DETERMINED",
    "EXACT",
    "EXACT_DB",
    "FEWEST_TARGETS",
    "FOUND",
    "GUESSES",
    "IDENTICAL_DB",
    "IN_THE_UPDATE_DB",
    "LEAST_DB",
    "MEMBER_LEVEL",
    "MISFIT",
    "NEARBY",
    "NOT_IN_THE_UPDATE_DB",
    "NULLS",
    "OPEN",
    "PARTLY_DB",
    "PIXEL_SLACK",
    "SATURATED_DB",
    "SOLVED",
]

EXACT = 1e-8
"""Relative matching cost `|client(x^) - u|^2 / |u|^2` below which a result reproduces the update.

A relative error of 1e-4 of the update's norm: room for the rounding of single precision (1e-7 an operation) through a
deep network, and no more."""

OPEN = 1e-4
"""Share of a picture, by its square, from which the update counts as leaving it open: 40 dB below it, as `EXACT_DB`."""

PIXEL_SLACK = 0.05
"""How far outside [0, 1] a pixel of an exact result may lie: what single precision makes of a pixel at the end of the
range, through an input normalization with a small standard deviation."""

SOLVED = 1e-3
"""Relative matching cost below which what an exact method found is nearer to the update than any search comes, so that
the default attack searches no further."""

DETERMINED = 1e-6
"""Share of a convolution's input, by its square, up to which its equations leave hardly anything open.

Stricter than `OPEN`, for the layers in front of it are solved from it, and what is open adds up."""

FOUND = 1e-6
"""Relative squared error of features below which an image was found that gives them, and no further start is tried: a
relative error of 1e-3, where one of 0.035 is near."""

EXACT_DB = 40.0
"""PSNR from which a picture is called exact, where the client makes the same update of it: an error of 1 % of the
range, which nobody sees. What merely makes the same update may have 20 dB, behind an average over pixels."""

LEAST_DB = 0.1
"""By how much the full attack must be above the best control: less is shown as 0.0 dB, and is a matter of rounding."""

AGREEMENT_DB = 3.0
"""By how much two runs must agree better than with one color, where there is no truth: half the squared error."""

CLEARLY_DB = 3.0
"""Margin over the best control from which a picture "recovered": half the squared error. Descriptive, no verdict; also
what `gate` holds a report without a verdict to."""

PARTLY_DB = 1.0
"""Margin from which it "recovered in part": a fifth less squared error. Descriptive, no verdict."""

IDENTICAL_DB = 200.0
"""PSNR given to identical images, whose ratio is infinite and would ruin a mean; an error of 1e-20."""

SATURATED_DB = 60.0
"""PSNR from which a picture of a sweep over defenses counts no further: it is exact to the eye and to eight bits, and
more would only move the averages."""

IN_THE_UPDATE_DB = 6.0
"""By how much the limit of an update must be above the best control, and the prior's own score, for a picture to be
called in the update: a quarter of the squared error. Updates that hold a picture have limits 10 to 100 dB above; what a
mean or a color of the picture gives is 2 to 3 dB above the prior."""

NOT_IN_THE_UPDATE_DB = 3.0
"""By how much it may be above them at most for a picture to be called not in the update: half the squared error, from
which on a reconstruction is said to be recovered (`CLEARLY_DB`). Between the two it is not decided."""

MISFIT = 3.0
"""What the truth leaves unexplained of an update, along changes of the pictures over elsewhere, from which on other
pictures made the update, so that the limit at the truth says nothing of it. Noise has about 1 (0.7 to 1.5 measured),
updates of other pictures with the same labels 7 to 35."""

NEARBY = 0.1
"""Matching error up to which a result makes about the same update as the private pictures, so that the limit taken at
it is about theirs; beyond, it is taken at a stand-in."""

NULLS = 19
"""Null runs by default: the fewest that bound false alarms by 1 / (19 + 1) = 5 % (Barnard 1963)."""

FEWEST_TARGETS = 6
"""Targets from which an interval over targets is given: with fewer it would rest on a shape of the distribution that
nobody has seen."""

CALLS_LEVEL = 0.025
"""Chance, one-sided, of as many called targets if no update says anything, up to which several targets are called
leaked: as much as lies above a 95 % interval."""

MEMBER_LEVEL = 0.05
"""p-value up to which a record is called in the update: of records that are out, at most that share is on average, as
with `NULLS` null runs. It takes 19 records known to be out."""

GUESSES = (0.001, 0.01, 0.1, 0.5)
"""Chances of a guess before an update for which the bound on what it becomes is stated: the first two are also the
rates of false alarms at which membership is."""
