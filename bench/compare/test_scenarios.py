"""The tables of scenarios hold together: `python3 -m unittest discover -s bench/compare`."""

import unittest

import machine
import report
import scenarios


class Tables(unittest.TestCase):
    def test_rows_speak_of_variants_that_are_measured(self):
        for scenario in scenarios.ALL:
            names = [variant.name for variant in scenario.variants]
            self.assertEqual(len(names), len(set(names)), scenario.name)
            for row in scenario.rows:
                self.assertIn(row.subject, names)
                self.assertIn(row.against, names)
                self.assertIn(row.figure, report.UNITS)

    def test_every_variant_is_in_a_row(self):
        for scenario in scenarios.ALL:
            told = {name for row in scenario.rows for name in (row.subject, row.against)}
            self.assertEqual({variant.name for variant in scenario.variants} - told, set(), scenario.name)

    def test_latencies_that_are_compared_are_under_the_same_load(self):
        for scenario in scenarios.ALL:
            shares = {variant.name: (variant.load.share, variant.place) for variant in scenario.variants}
            for row in scenario.rows:
                if row.figure in ("p50_us", "p99_us"):
                    self.assertEqual(shares[row.subject], shares[row.against], scenario.name)
            paced = {place for share, place in shares.values() if share}
            self.assertLessEqual(paced, {"paced"}, scenario.name)

    def test_another_build_is_measured_after_each_and_compared_with_the_first(self):
        scenario = scenarios.with_programs(scenarios.forward(), ["rateguard", "changed"])
        names = [variant.name for variant in scenario.variants]
        self.assertEqual(names[:4], ["nginx", "haproxy", "rateguard", "changed"])
        self.assertEqual(scenario.variants[3].proxy.program, "changed")
        compared = [(row.subject, row.against) for row in scenario.rows if row.figure == "cpu_us"]
        self.assertIn(("changed", "nginx"), compared)
        self.assertIn(("changed", "rateguard"), compared)

    def test_what_is_compared_with_the_gateway_itself_stays_within_a_build(self):
        scenario = scenarios.with_programs(scenarios.growth(), ["rateguard", "changed"])
        compared = [(row.subject, row.against) for row in scenario.rows]
        self.assertIn(("changed, 1 000 routes", "changed, 1 route"), compared)
        self.assertIn(("changed, 1 000 routes", "rateguard, 1 000 routes"), compared)

    def test_where_a_peer_is_missing_its_rows_are(self):
        scenario = scenarios.without(scenarios.in_redis(), {"rateguard", "nginx"})
        self.assertEqual({row.against for row in scenario.rows}, {"nginx, no limit", "nginx limit_req"})

    def test_one_processor_has_one_placement(self):
        self.assertEqual(set(machine.places({3})), {"one"})
        found = machine.places({0, 1})
        self.assertEqual((found["split"].proxy, found["split"].rest), ({1}, {0}))
        self.assertEqual(found["two"].proxy, found["two"].rest)
        self.assertEqual((found["paced"].proxy, found["paced"].rest, found["paced"].store), ({1}, {0}, {1}))
        self.assertEqual(machine.places({0, 1, 2})["paced"].store, {0, 1})
        found = machine.places({0, 1, 2, 3})
        self.assertEqual((found["two"].proxy, found["two"].rest), ({2, 3}, {0, 1}))
        self.assertEqual((found["split"].proxy, found["split"].rest), ({3}, {0, 1, 2}))

    def test_who_shares_processors_is_one_group(self):
        found = machine.places({0, 1})
        self.assertEqual(found["one"].groups(), [({1}, ["proxy", "rest", "store"])])
        self.assertEqual(found["split"].groups(), [({1}, ["proxy"]), ({0}, ["rest", "store"])])
        self.assertEqual(found["paced"].groups(), [({1}, ["proxy", "store"]), ({0}, ["rest"])])

    def test_a_model_becomes_part_of_a_name(self):
        self.assertEqual(machine.slug("Intel(R) Xeon(R) CPU @ 2.20GHz"), "intel-xeon-cpu-2-20ghz")


if __name__ == "__main__":
    unittest.main()
