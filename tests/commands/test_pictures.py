"""Pictures of runs: what is drawn can be told apart."""

from cli.show.pictures import _accuracies, pyplot


def test_every_encoder_has_a_line_of_its_own() -> None:
    final = {name: {"accuracy": 0.1 * k} for k, name in enumerate(("coordinates", "untrained", "embedded", "trained"))}
    scores = [
        {"epoch": 5, "result": {"rows": {"trained": {"accuracy": 0.2}}}},
        {"epoch": 10, "result": {"rows": final}},
    ]
    plt = pyplot()
    figure, axis = plt.subplots()
    _accuracies(axis, scores)
    looks = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.get_lines()}
    assert set(looks) == set(final)
    assert len({color for color, _ in looks.values()}) == len({style for _, style in looks.values()}) == len(looks)
    plt.close(figure)
