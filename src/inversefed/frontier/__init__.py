"""The privacy-utility frontier: what each defense leaks and what it costs, point by point.

    point -> leakage (plain attack, adaptive attack, controls)  x  utility  x  epsilon

`points` says what a point is and measures one; `utility` trains a small network with the defense; `report.frontier`
lays rows out as a table and a drawing.
"""

from inversefed.frontier.points import Point, measure
from inversefed.frontier.utility import Data, accuracy_of

__all__ = ["Data", "Point", "accuracy_of", "measure"]
