"""`make nightly`: what is kept of a run."""

from scripts.nightly import summarise


def test_cases_of_a_function_are_summed_and_what_did_not_pass_is_named():
    tests = [
        {"name": "tests.a::test_one[3]", "outcome": "passed", "seconds": 0.5},
        {"name": "tests.a::test_one[4]", "outcome": "skipped", "seconds": 0.25, "reason": "no GPU"},
        {
            "name": "tests.a::test_one[x[0]]",
            "outcome": "failure",
            "seconds": 1.0,
            "reason": "1 != 2",
        },
        {"name": "tests.a::test_two", "outcome": "error", "seconds": 0.0, "reason": "no fixture"},
    ]
    assert summarise(tests) == {
        "tests.a::test_one": {
            "passed": 1,
            "seconds": 1.75,
            "skipped": {"4": "no GPU"},
            "failure": {"x[0]": "1 != 2"},
        },
        "tests.a::test_two": {
            "passed": 0,
            "seconds": 0.0,
            "error": {"tests.a::test_two": "no fixture"},
        },
    }
