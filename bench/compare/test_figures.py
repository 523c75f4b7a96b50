"""What is made of raw data: `python3 -m unittest discover -s bench/compare`."""

import unittest

import accounting
import figures
import load
from scenarios import Goal, Row


def line(variant, run, marked=0, **more):
    return {"scenario": "S", "variant": variant, "run": run, "marked": marked, **more}


def costs(variant, run, cpu_us, share, beats, marked=0):
    return line(variant, run, marked, cpu_us=cpu_us, share=share, beats=beats)


class Results(unittest.TestCase):
    def test_ratios_are_taken_within_each_round(self):
        # The processor is twice as fast in the second round: microseconds change, and no ratio does.
        lines = [costs("ours", 1, 20.0, 0.8, 2.0), costs("theirs", 1, 40.0, 1.6, 4.0),
                 costs("ours", 2, 10.0, 0.8, 2.0), costs("theirs", 2, 20.0, 1.6, 4.0)]
        found = figures.result(lines, "S", Row("ours", "theirs", goal=Goal(ratio_max=0.5)))
        self.assertEqual((found.runs, found.value, found.other), (2, 15.0, 30.0))
        self.assertEqual(found.ratios, (0.5, 0.5))
        self.assertEqual(found.verdict, figures.KEPT)

    def test_least_and_most_are_by_beats(self):
        lines = [costs("ours", run, 1.0, 1.0, beats) for run, beats in ((1, 1.0), (2, 3.0), (3, 2.0))]
        lines += [costs("theirs", run, 1.0, 1.0, 2.0) for run in (1, 2, 3)]
        found = figures.result(lines, "S", Row("ours", "theirs"))
        self.assertEqual((found.least, found.ratios[1], found.most), (0.5, 1.0, 1.5))

    def test_disturbed_rounds_count_only_where_there_are_no_others(self):
        quiet = [costs("ours", 1, 1.0, 1.0, 1.0), costs("theirs", 1, 2.0, 2.0, 2.0)]
        disturbed = [costs("ours", 2, 9.0, 9.0, 9.0, marked=1), costs("theirs", 2, 1.0, 1.0, 1.0)]
        found = figures.result(quiet + disturbed, "S", Row("ours", "theirs"))
        self.assertEqual((found.runs, found.marked, found.ratios[0]), (1, 0, 0.5))
        found = figures.result(disturbed, "S", Row("ours", "theirs"))
        self.assertEqual((found.runs, found.marked, found.ratios[0]), (1, 1, 9.0))

    def test_a_round_that_lacks_one_of_the_two_does_not_count(self):
        lines = [costs("ours", 1, 1.0, 1.0, 1.0), costs("ours", 2, 1.0, 1.0, 1.0), costs("theirs", 2, 1.0, 1.0, 1.0)]
        self.assertEqual(figures.result(lines, "S", Row("ours", "theirs")).runs, 1)
        self.assertIsNone(figures.result(lines[:2], "S", Row("ours", "theirs")))

    def test_of_volume_more_is_better(self):
        lines = [line("ours", 1, mb_per_cpu_s=200.0, share=1.0, beats=10.0),
                 line("theirs", 1, mb_per_cpu_s=100.0, share=2.0, beats=20.0)]
        found = figures.result(lines, "S", Row("ours", "theirs", "mb_per_cpu_s", "volume", Goal(ratio_min=1.1)))
        self.assertEqual((found.value, found.ratios, found.verdict), (200.0, (2.0, 2.0), figures.KEPT))

    def test_what_is_added_is_measured_in_round_trips(self):
        lines = [line("with", 1, p99_us=400, rtt_us=50.0), line("without", 1, p99_us=300)]
        found = figures.result(lines, "S", Row("with", "without", "p99_us", "added", Goal(ratio_max=1.5)))
        self.assertEqual((found.value, found.other, found.ratios), (100, 50.0, (2.0,)))
        self.assertEqual(found.verdict, figures.MISSED)


class Rate(unittest.TestCase):
    def test_it_is_lowered_until_the_busiest_processor_has_half_of_its_time(self):
        self.assertEqual(figures.calm(30_000, 0.4), 30_000)
        self.assertEqual(figures.calm(30_000, 0.75), 20_000)


class Load(unittest.TestCase):
    def test_what_is_asked_of_pace(self):
        asked = load.pace_command("pace", load.Load("users", 10_000, share=0.5), 80, 4, 7_999.6)
        told = dict(zip(asked[1::2], asked[2::2]))
        self.assertEqual(told, {"--port": "80", "--rate": "8000", "--seconds": "4", "--path": "/api/items",
                                "--connections": "64", "--users": "10000"})

    def test_the_busiest_processors_are_those_that_worked_most_for_us(self):
        window = object.__new__(accounting.Window)
        window.wall_ns = 100
        groups = [({1}, ["proxy", "store"]), ({0, 2}, ["rest"])]
        self.assertEqual(window.busiest(groups, {"proxy": 20, "store": 15, "rest": 80}), 0.4)


class Verdict(unittest.TestCase):
    def test_a_ratio_counts_where_share_and_beats_agree(self):
        goal = Goal(ratio_max=0.7)
        self.assertEqual(figures.verdict(goal, 0, (0.7, 0.6)), figures.KEPT)
        self.assertEqual(figures.verdict(goal, 0, (0.71, 0.6)), figures.DIVIDED)
        self.assertEqual(figures.verdict(goal, 0, (0.71, 0.8)), figures.MISSED)

    def test_a_figure_can_be_bounded_itself(self):
        self.assertEqual(figures.verdict(Goal(value_max=24), 24.0, (3.0,)), figures.KEPT)
        self.assertEqual(figures.verdict(Goal(value_max=24), 24.1, (0.1,)), figures.MISSED)

    def test_no_goal_has_no_verdict(self):
        self.assertEqual(figures.verdict(None, 1.0, (1.0,)), "")


if __name__ == "__main__":
    unittest.main()
