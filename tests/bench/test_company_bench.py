"""The bench of threads in company."""

from bench import company


def test_company_times_both_against_the_sum_of_each(capsys) -> None:
    assert company.main(["--kind", "numpy", "--rounds", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    for row in rows:
        name, whose, *times = (cell.strip() for cell in row.strip("| ").split("|"))
        assert name.startswith("NumPy")
        assert whose == "own"
        assert len(times) == 4
        assert all(float(each) > 0 for each in times)
