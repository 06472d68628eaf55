import pytest
from inversefed import defenses
from tests.attacks.test_adaptive import compared, module, pictures, seen  # noqa
CASES = {
 "Percentile(90, 10)": defenses.PercentilePrivacy(90.0, 10.0),
 "Percentile(90, 0.1)": defenses.PercentilePrivacy(90.0, 0.1),
 "Percentile()": defenses.PercentilePrivacy(),
 "SVT()": defenses.SVTPrivacy(),
 "SVT(0.1, 1e4, 10, 0.5, 0.1, no replace)": defenses.SVTPrivacy(0.1, 1e4, 10.0, 0.5, 0.1, replace=False),
 "SVT(0.1, 1e4, 100, 0.5, 0.1, no replace)": defenses.SVTPrivacy(0.1, 1e4, 100.0, 0.5, 0.1, replace=False),
 "Exclude(^5)": defenses.ExcludeVars("^5"),
 "Exclude(^0)": defenses.ExcludeVars("^0"),
 "Exclude(^[02])": defenses.ExcludeVars("^[02]"),
}
@pytest.mark.parametrize("case", CASES)
def test_it(case, module, pictures):
    try:
        print("RESULT", case, [round(x,1) for x in compared(seen(module, pictures[:1], (CASES[case],)))])
    except Exception as e:
        print("RESULT", case, type(e).__name__, e)
