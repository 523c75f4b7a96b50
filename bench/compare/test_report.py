"""The table, the files and the plot: `python3 -m unittest discover -s bench/compare`."""

import pathlib
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

import figures
import plot
import report
from scenarios import Goal, Row

ROW = Row("rateguard", "nginx", goal=Goal(ratio_max=0.70))
FACTS = {"title": "day", "command": "bench/run", "machine": "one", "took": "1 min", "seconds": 4, "warm_s": 1, "awake": True,
         "versions": [("nginx", "1.22")]}
RESULT = figures.Result("S1", ROW, 5, 20.02, 28.61, (0.701, 0.688), 0.66, 0.72, 0, figures.DIVIDED)


class Table(unittest.TestCase):
    def test_says_figures_ratios_goal_and_verdict(self):
        head, rule, line = report.table([RESULT]).splitlines()
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        self.assertEqual(cells, ["S1", "rateguard", "CPU us a request", "20.0", "nginx", "28.6", "0.70 / 0.69", "0.66–0.72",
                                 "<= 0.70 x", figures.DIVIDED, "5"])
        self.assertEqual(len(head), len(rule))
        self.assertEqual(len(head), len(line))

    def test_marks_what_was_disturbed(self):
        marked = figures.Result("S1", ROW, 1, 1.0, 1.0, (1.0, 1.0), 1.0, 1.0, 1, "")
        self.assertIn("1 !", report.table([marked]))

    def test_goals_are_written_as_bounds(self):
        self.assertEqual(report.goal_text(None), "")
        self.assertEqual(report.goal_text(Goal(ratio_min=1.1)), ">= 1.10 x")
        self.assertEqual(report.goal_text(Goal(value_max=24)), "<= 24")


class Files(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def test_a_second_run_of_the_day_overwrites_nothing(self):
        names = [report.folder(self.root / "runs", "day-processor").name for _ in range(3)]
        self.assertEqual(names, ["day-processor", "day-processor-2", "day-processor-3"])

    def test_raw_data_is_there_as_soon_as_it_is_measured(self):
        raw = report.Raw(self.root / "raw.csv")
        self.addCleanup(raw.close)
        raw.write({"scenario": "S1", "variant": "nginx", "run": 1, "cpu_us": 28.61234567, "redis_us": None})
        head, line = (self.root / "raw.csv").read_text().splitlines()
        self.assertEqual(dict(zip(head.split(","), line.split(",")))["cpu_us"], "28.6123")
        self.assertEqual(raw.lines[0]["cpu_us"], 28.61234567)

    def test_all_files_of_a_run_are_written(self):
        report.write(self.root, [RESULT], FACTS, ["haproxy: not installed"])
        text = (self.root / "README.md").read_text()
        self.assertIn("- nginx: 1.22", text)
        self.assertIn("- haproxy: not installed", text)
        self.assertTrue((self.root / "summary.md").read_text().startswith("| scenario"))
        self.assertTrue((self.root / "ratios.svg").exists())
        self.assertIn("ratios.svg", text)

    def test_a_plot_that_was_not_drawn_is_not_spoken_of(self):
        report.write(self.root, [], FACTS, [])
        self.assertNotIn("ratios.svg", (self.root / "README.md").read_text())
        self.assertFalse((self.root / "ratios.svg").exists())


class Plot(unittest.TestCase):
    def test_bars_are_as_long_as_their_ratios(self):
        bars = [{"label": "<a & b>", "ratios": (ratio / 2, ratio), "goal": 0.7, "own": True} for ratio in (0.5, 1.0)]
        root = ElementTree.fromstring(plot.svg("title", "subtitle", bars))
        drawn = [one for one in root.iter("{http://www.w3.org/2000/svg}rect") if one.get("class") == "own beats"]
        short, long = (float(one.get("width")) for one in drawn)
        self.assertAlmostEqual(long / short, 2.0, places=2)

    def test_a_bar_beyond_the_scale_ends_with_it(self):
        bars = [{"label": "a", "ratios": (2.0, 50.0), "goal": None, "own": False}]
        root = ElementTree.fromstring(plot.svg("title", "subtitle", bars))
        for one in root.iter("{http://www.w3.org/2000/svg}rect"):
            self.assertLessEqual(float(one.get("x", 0)) + float(one.get("width")), plot.WIDTH)

    def test_only_costs_beside_nginx_are_drawn(self):
        other = figures.Result("S6", Row("rateguard", "nginx", "rss_mib", "plain"), 1, 1.0, 1.0, (1.0,), 1.0, 1.0, 0, "")
        self.assertEqual([bar["ratios"] for bar in report.bars([RESULT, other])], [(0.701, 0.688)])


if __name__ == "__main__":
    unittest.main()
