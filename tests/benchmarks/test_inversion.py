"""The benchmark's arithmetic, its files and its messages; nothing here depends on how fast the machine is."""

import itertools
import json
import re

import pytest
import torch
from PIL import Image

from benchmarks import inversion, plot, reference
from benchmarks.cases import CASES, Case, chosen
from benchmarks.curves import Curve, mean_at, mean_curve, seconds_to_stay, speedup, target, thinned
from benchmarks.measure import World, measure
from benchmarks.pictures import Example, bundled, first, label_of, read_folder
from benchmarks.restarts import measure_restarts, optimization_attack
from benchmarks.stopwatch import Stopwatch, decibels
from inversefed import FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.errors import ConfigError, InputError, ThreatModelError
from inversefed.types import Batch, Budget, Reconstruction, Status, Step
from inversefed.zoo import constants, networks

TINY = Case("LeNetZhu", 6, (1e-4, 1e-2))
FIGURES = {
    "reference_psnr", "reference_seconds", "best_psnr_at_reference_seconds", "best_seconds_to_reference_psnr",
    "speedup", "gray_psnr", "constant_psnr", "images", "best_final_psnr", "best_final_seconds",
}  # fmt: skip


@pytest.fixture
def examples(photos) -> list[Example]:
    return [Example(f"photo_{index}", image, index) for index, image in enumerate(photos)]


@pytest.fixture
def folder(tmp_path, photos):
    """Two pictures, one in color and one in gray, of other sizes than 32."""
    path = tmp_path / "pictures"
    path.mkdir()
    pixels = (photos[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).resize((48, 48)).save(path / "b_00_3.png")
    Image.fromarray(pixels).convert("L").resize((20, 20)).save(path / "a_01_8.JPG", format="jpeg")
    (path / "notes_5.txt").write_text("no picture")
    return path


@pytest.fixture
def quick(monkeypatch):
    """Every case in a second, whatever `best()` comes to be."""
    for name in CASES:
        monkeypatch.setitem(CASES, name, TINY)
    monkeypatch.setattr(recipes, "best", lambda: recipes.geiping(max_iterations=6))


# the curves


def test_an_image_counts_as_gray_before_its_first_output_and_keeps_its_last():
    curve = Curve(11.0, (1.0, 4.0), (9.0, 30.0))
    assert [curve.at(time) for time in (0.0, 0.99, 1.0, 3.99, 4.0, 1e9)] == [11, 11, 9, 9, 30, 30]
    assert Curve(11.0).at(5.0) == Curve(11.0).final == 11.0


def test_the_mean_is_over_the_images_at_one_time():
    curves = [Curve(10.0, (1.0,), (20.0,)), Curve(12.0, (2.0,), (40.0,)), Curve(11.0)]
    assert mean_at(curves, 0.5) == pytest.approx(11.0)
    assert mean_at(curves, 1.5) == pytest.approx((20 + 12 + 11) / 3)
    mean = mean_curve(curves)
    assert mean.seconds == (1.0, 2.0) and mean.final == pytest.approx((20 + 40 + 11) / 3)


def test_a_level_is_reached_when_the_mean_stays_there():
    lost_again = Curve(10.0, (1.0, 2.0, 3.0, 4.0), (25.0, 15.0, 22.0, 21.0))
    assert seconds_to_stay([lost_again], 20.0) == 3.0
    assert seconds_to_stay([lost_again], 21.0) == 3.0  # at the level is enough
    assert seconds_to_stay([lost_again], 21.5) is None  # its end is below
    assert seconds_to_stay([lost_again], 12.0) == 1.0
    assert seconds_to_stay([lost_again], 10.0) == 0.0
    assert seconds_to_stay([Curve(11.0), Curve(11.0)], 12.0) is None  # an attack that gave nothing


def test_one_good_image_does_not_reach_it_for_the_other():
    curves = [Curve(10.0, (1.0,), (30.0,)), Curve(10.0, (5.0,), (24.0,))]
    assert seconds_to_stay(curves, 22.0) == 5.0
    assert seconds_to_stay(curves, 20.0) == 1.0


def test_the_speedup_is_of_the_times_and_zero_if_never():
    assert speedup(40.0, 2.0) == 20.0
    assert speedup(40.0, 80.0) == 0.5
    assert speedup(40.0, None) == 0.0


def test_a_reference_below_the_best_constant_color_is_not_the_bar():
    assert target(23.0, 12.5) == 23.0
    assert target(10.0, 12.5) == 13.5


def test_a_thinned_curve_keeps_its_ends_and_its_order():
    curve = Curve(0.0, tuple(float(second) for second in range(1, 1001)), tuple(float(level) for level in range(1000)))
    points = thinned(curve)
    assert len(points["seconds"]) == len(points["psnr"]) < 300
    assert points["seconds"][0] == 1.0 and points["seconds"][-1] == 1000.0 and points["psnr"][-1] == 999.0
    assert points["seconds"] == sorted(points["seconds"])
    assert thinned(Curve(0.0)) == {"seconds": [], "psnr": []}


def test_the_stopwatch_does_not_count_what_it_does_itself(photos):
    now = [100.0]
    watch = Stopwatch(clock=lambda: now[0])

    def best():
        now[0] += 7.0  # judging takes its time
        return photos[:1]

    for step in (1.0, 0.005, 1.0):  # the second comes too soon after the first
        now[0] += step
        watch.look(best)
    now[0] += 0.5
    seconds, _ = watch.stop(photos[1:2])
    assert [moment for moment, _ in watch.outputs] == pytest.approx([1.0, 2.005, 2.505])
    assert seconds == pytest.approx(2.505)
    curve = watch.curve(photos[:1], before=11.0)
    assert curve.psnr[:2] == (200.0, 200.0) and curve.final == decibels(photos[1:2], photos[:1]) < 30


# the pictures


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cifar10_00_3.png", 3),
        ("cifar10_00_0.jpg", 0),
        ("cat_7_small.jpeg", 7),
        ("cat.png", 0),
        ("cat7.png", 0),
        ("cat_7b.png", 0),
        ("IMG_2034.jpg", 0),
        ("a.b_4.png", 4),
    ],
)
def test_the_label_is_the_last_number_after_an_underscore(name, label):
    assert label_of(name) == label


def test_a_folder_is_read_in_the_order_of_its_names(folder):
    examples = read_folder(folder)
    assert [(each.name, each.label) for each in examples] == [("a_01_8.JPG", 8), ("b_00_3.png", 3)]
    assert all(each.image.shape == (3, 32, 32) and 0 <= each.image.min() <= each.image.max() <= 1 for each in examples)
    assert first(examples, 1) == examples[:1] and first(examples, 9) == examples


def test_the_bundled_photographs_serve_without_a_folder():
    examples = bundled()
    assert examples[0].name == "chelsea" and all(each.image.shape == (3, 32, 32) for each in examples)


def test_a_folder_that_cannot_be_used_says_why(tmp_path, folder):
    with pytest.raises(InputError, match="holds no picture"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="is not there"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match="is a file"):
        read_folder(folder / "b_00_3.png")
    Image.new("RGB", (40, 32)).save(folder / "c_2.png")
    with pytest.raises(InputError, match=r"c_2.png is 40x32 pixels; pictures must be square"):
        read_folder(folder)


# the reference


@pytest.mark.parametrize(("name", "weight"), [("LeNetZhu", 1e-2), ("AllConv", 1e-4), ("LeNetZhu", 10.0)])
def test_the_plain_loop_is_the_papers_recipe(name, weight, photos):
    """In double precision, so that no sign of a tiny gradient depends on rounding; 12 steps pass all milestones."""
    module = networks.build(name, seed=0).eval().double()
    network = freeze(module, (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std)
    truth = Batch(photos[:1].double(), torch.tensor([3]))
    update = FedSGD()(network, truth.images, truth.labels)
    observation = observe(network, FedSGD(), update, truth, ThreatModel(labels="known"))
    attack = recipes.geiping(max_iterations=12, total_variation=weight)
    theirs = attack(observation, torch.Generator().manual_seed(5)).images

    gradient = reference.gradient_of(module, (truth.images - network.mean) / network.std, truth.labels)
    seen = []
    ours = reference.invert(
        module, gradient, truth.labels, truth.images.shape, (network.mean, network.std),
        torch.Generator().manual_seed(5), iterations=12, total_variation=weight, look=lambda best: seen.append(best()),
    )  # fmt: skip
    assert (ours - theirs).abs().max() < 1e-4
    assert len(seen) == 12 and (seen[0] - ours).abs().max() > 0.05  # it moved


# the measurement


def finite(document) -> dict:
    """Through text and back, as strict JSON."""
    return json.loads(json.dumps(document, allow_nan=False))


def test_a_case_has_its_figures_and_every_pictures_own(examples):
    lines = []
    found = finite(measure(TINY, examples, attack=recipes.geiping(max_iterations=5), tell=lines.append))
    assert set(found) >= FIGURES
    assert found["images"] == 2 and [each["name"] for each in found["per_image"]] == ["photo_0", "photo_1"]
    for key, part in (("reference_psnr", "reference"), ("best_final_psnr", "best")):
        assert found[key] == pytest.approx(sum(each[part]["psnr"] for each in found["per_image"]) / 2)
    assert found["gray_psnr"] <= found["constant_psnr"]
    tried = found["reference"]["tried"]
    assert [each["total_variation"] for each in tried] == [1e-4, 1e-2]
    assert found["reference_psnr"] == max(each["psnr"] for each in tried)
    assert found["reference_seconds"] == max(tried, key=lambda each: each["psnr"])["seconds"]
    assert found["speedup"] == 0.0 and found["best_seconds_to_reference_psnr"] is None  # 5 steps reach no 13 dB
    assert [finding["code"] for finding in found["per_image"][0]["best"]["findings"]] == ["labels-given"]
    assert set(found["curves"]) == {"reference", "best"} and found["curves"]["best"]["psnr"]
    assert len(lines) == 6 and "photo_1" in lines[-1]


class Oracle:
    """Knows the pictures, which no attack does: to see that reaching the target is noticed."""

    def __init__(self, examples):
        self.examples = list(examples)
        self.budgets = []

    def __call__(self, observation, generator, budget=Budget()):
        self.budgets.append(budget)
        images = self.examples.pop(0).image[None]
        budget.on_step(Step(0, 1, 1, 1, 0.0, 0.0, lambda: images))
        return Reconstruction(images, observation.labels, 0.0, Status.FINISHED)


def test_what_is_recovered_counts_from_its_moment(examples):
    oracle = Oracle(examples)
    found = finite(measure(TINY, examples, attack=oracle, tell=lambda _: None))
    assert found["best_final_psnr"] == 200.0  # the cap of identical pictures
    assert found["speedup"] * found["best_seconds_to_reference_psnr"] == pytest.approx(found["reference_seconds"])
    assert [budget.seconds for budget in oracle.budgets] == pytest.approx([5 * found["reference_seconds"]] * 2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_attack_that_loses_its_numbers_leaves_the_file_finite(examples, loss):
    def lost(observation, generator, budget=Budget()):
        return Reconstruction(torch.full((1, 3, 32, 32), loss), observation.labels, loss, Status.NON_FINITE)

    found = finite(measure(TINY, examples, attack=lost, tell=lambda _: None))
    assert found["best_final_psnr"] == pytest.approx(found["gray_psnr"]) and found["speedup"] == 0.0
    assert found["per_image"][0]["best"]["matching_cost"] is None
    assert found["per_image"][0]["best"]["status"] == "non-finite"


def test_an_attack_that_gives_up_counts_as_gray_and_is_named(examples):
    def refuses(observation, generator, budget=Budget()):
        raise ThreatModelError("not this one")

    found = finite(measure(TINY, examples, attack=refuses, tell=lambda _: None))
    assert found["best_final_psnr"] == found["best_psnr_at_reference_seconds"] == pytest.approx(found["gray_psnr"])
    assert found["per_image"][1]["best"]["error"] == "ThreatModelError: not this one"


def test_the_attack_sees_the_label_and_not_the_picture(examples):
    seen = []

    def looks(observation, generator, budget=Budget()):
        seen.append(observation)
        return Reconstruction(torch.zeros(1, 3, 32, 32), observation.labels, 1.0, Status.FINISHED)

    measure(TINY, examples, network_seed=3, attack=looks, tell=lambda _: None)
    assert [int(each.labels) for each in seen] == [0, 1]
    weights = dict(networks.build("LeNetZhu", seed=3).named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in seen[0].network.params.items())
    assert not seen[0].network.module.training


def test_restarts_are_measured_beside_one(examples):
    world = World.of("LeNetZhu", 0, examples)
    found = finite(measure_restarts(world, 2, 3, lambda _: recipes.geiping(), tell=lambda _: None))
    assert set(found) >= {"width", "cost_over_one", "psnr", "psnr_all_to_the_end"}
    assert found["width"] == 2 and found["cost_over_one"] > 0 and 0 < found["psnr"] < 200


@pytest.mark.parametrize("name", ["LeNetZhu", "AllConv"])
def test_restarts_are_of_an_attack_by_optimization(name, examples):
    from benchmarks.measure import observation_of

    attack = optimization_attack(observation_of(World.of(name, 0, examples), 0))
    assert isinstance(attack, GradientInversion)


# the command


def test_the_command_writes_figures_and_a_plot(quick, folder, tmp_path, capsys):
    out = tmp_path / "new" / "out.json"
    arguments = ["--images", str(folder), "--cases", "lenet,allconv", "--limit", "1", "--restarts", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "measure_restarts", lambda world, width, **_: {"width": width})
        assert inversion.main([*arguments, "--json", str(out)]) == 0
    document = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert list(document["cases"]) == ["lenet", "allconv"]
    assert document["cases"]["lenet"].keys() >= FIGURES | {"curves", "per_image"}
    assert document["cases"]["lenet"]["restarts"] == {"width": 2}
    assert document["cases"]["lenet"]["per_image"][0]["name"] == "a_01_8.JPG"
    assert document["machine"]["threads"] == "1" and "torch" in document["machine"]
    assert document["command"].startswith("python -m benchmarks.inversion --images")
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.size == pytest.approx((2 * plot.WIDTH * plot.DOTS, plot.HEIGHT * plot.DOTS))
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.json", "out.png"]
    printed = capsys.readouterr()
    assert printed.out == "" and "lenet: reference" in printed.err


def test_an_interruption_keeps_what_was_finished(quick, folder, tmp_path, monkeypatch, capsys):
    calls, out = itertools.count(), tmp_path / "out.json"

    def stopped(observation, generator, budget=Budget()):
        status = Status.INTERRUPTED if next(calls) == 2 else Status.FINISHED
        return Reconstruction(torch.zeros(1, 3, 32, 32), observation.labels, 1.0, status)

    monkeypatch.setattr(recipes, "best", lambda: stopped)
    arguments = ["--images", str(folder), "--cases", "lenet,allconv", "--json", str(out)]
    assert inversion.main(arguments) == 130
    assert list(json.loads(out.read_text())["cases"]) == ["lenet"]
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "lenet,convnet61"], r"unknown case 'convnet61'; did you mean .*Known: allconv"),
        (["--cases", ","], "names no case"),
        (["--limit", "0"], "at least 1; got 0"),
        (["--threads", "0"], "--threads is at least 1"),
        (["--restarts", "1"], "--restarts"),
        (["--images", "no/such/folder"], "folder of pictures"),
        (["--json", "figures.png"], "plot goes beside it"),
    ],
)
def test_wrong_usage_is_named_and_nothing_is_written(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert inversion.main(["--json", "out.json", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    assert inversion.main(["--json", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_earlier_file_stays_until_a_case_is_done(quick, folder, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text("earlier")
    monkeypatch.setattr(recipes, "best", lambda: (_ for _ in ()).throw(InputError("not today")))
    assert inversion.main(["--images", str(folder), "--cases", "lenet", "--json", str(out)]) == 2
    assert out.read_text() == "earlier"


def test_the_cases_are_those_that_were_announced():
    budgets = {name: (case.network, case.iterations, case.total_variations) for name, case in CASES.items()}
    both = (1e-4, 1e-2)
    assert budgets == {
        "lenet": ("LeNetZhu", 4800, (1e-2,)),
        "allconv": ("AllConv", 1500, both),
        "mcmahan": ("McMahan", 1500, both),
        "convnet16": ("ConvNet16", 1500, both),
        "resnet20": ("ResNet20", 1500, both),
        "convnet": ("ConvNet", 300, both),
        "resnet20-4": ("ResNet20-4", 300, both),
    }
    assert {case.network for case in CASES.values()} <= set(networks.names())
    with pytest.raises(ConfigError, match="unknown case"):
        chosen("resnet", CASES)


def test_the_plot_shows_both_curves_and_the_gray_picture(tmp_path):
    case = {
        "network": "LeNetZhu",
        "speedup": 3.0,
        "gray_psnr": 11.0,
        "curves": {
            "reference": {"seconds": [0.1, 10.0], "psnr": [9.0, 20.0]},
            "best": {"seconds": [0.05, 3.0], "psnr": [12.0, 120.0]},
        },
    }
    nothing = {"reference": {"seconds": [0.5], "psnr": [14.0]}, "best": {"seconds": [], "psnr": []}}
    failed = {**case, "speedup": 0.0, "curves": nothing}
    figure = plot.draw({"one": case, "two": failed, "three": replace_best(case, 0.0), "four": case})
    assert figure.get_size_inches().tolist() == [3 * plot.WIDTH, 2 * plot.HEIGHT] and len(figure.axes) == 4
    panel = figure.axes[0]
    drawn = {line.get_label(): (line.get_color(), list(line.get_ydata())) for line in panel.lines}
    assert drawn[plot.TITLES["best"]] == (plot.COLORS["best"], [11.0, 12.0, 120.0, 120.0])
    assert drawn[plot.TITLES["reference"]] == (plot.COLORS["reference"], [11.0, 9.0, 20.0, 20.0])
    assert drawn[plot.TITLES["gray"]][0] == plot.COLORS["gray"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("seconds, logarithmic", "PSNR, dB") and panel.get_legend()
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    plot.save(figure, first)
    plot.save(plot.draw({"one": case, "two": failed, "three": replace_best(case, 0.0), "four": case}), second)
    assert first.read_bytes() == second.read_bytes()


def replace_best(case, level):
    return {**case, "curves": {**case["curves"], "best": {"seconds": [1e-6, 1e-5], "psnr": [level, level]}}}
