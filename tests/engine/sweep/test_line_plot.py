from xml.etree import ElementTree

import pytest

from engine.sweep.line_plot import LinePlot, Series, draw_plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(plot: LinePlot) -> ElementTree.Element:
    return ElementTree.fromstring(draw_plot(plot))


def points_of(element: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of each line, in the panels and in the legend."""
    lines = [line.attrib["points"].split() for line in element.iter(f"{SVG}polyline")]
    return [[tuple(map(float, point.split(","))) for point in line] for line in lines]


def test_values_are_drawn_to_scale() -> None:
    series = Series(name="one", values=((0.0, 2.0, None, 4.0),))
    plot = LinePlot(x_title="x", positions=(0.0, 1.0, 2.0, 4.0), titles=("y",), series=(series,))
    (line, legend) = points_of(drawn(plot))
    (x0, y0), (x1, y1), (x3, y3) = line
    assert x1 - x0 == pytest.approx((x3 - x0) / 4, abs=0.1)
    assert y0 - y1 == pytest.approx(y1 - y3, abs=0.1)
    assert len(legend) == 2


def test_names_are_evenly_spaced_and_escaped() -> None:
    series = tuple(Series(name=f"<{i}>", values=((1.0, 2.0, 3.0), (0.0, 0.0, 0.0))) for i in range(9))
    plot = LinePlot(x_title="a & b", positions=("ioa", "b", "c"), titles=("AP", "AR"), series=series)
    element = drawn(plot)
    texts = [text.text for text in element.iter(f"{SVG}text")]
    assert {"a & b", "AP", "AR", "ioa", "<8>"} <= set(texts)
    lines = points_of(element)
    assert len(lines) == 9 * 3
    (x0, _), (x1, _), (x2, _) = lines[0]
    assert x1 - x0 == pytest.approx(x2 - x1)
    # No two lines look alike.
    styles = {
        (line.attrib["stroke"], line.attrib["stroke-dasharray"]) for line in element.iter(f"{SVG}polyline")
    }
    assert len(styles) == 9


def test_lines_run_from_left_to_right_whatever_the_order_of_positions() -> None:
    series = Series(name="", values=((1.0, 2.0),))
    (line, _) = points_of(drawn(LinePlot(x_title="", positions=(5.0, 1.0), titles=("",), series=(series,))))
    assert line == sorted(line)
    assert line[0][1] < line[1][1]  # the left point is the second, greater value


def test_one_point_and_no_point() -> None:
    for value in (1.0, None):
        series = Series(name="", values=((value,),))
        plot = LinePlot(x_title="", positions=(1.0,), titles=("",), series=(series,))
        assert len(points_of(drawn(plot))[0]) == (value is not None)
