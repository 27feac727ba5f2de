"""`bedplate tour` as a user types it; its stages are tested in tests/advise."""

import json

from bedplate.advise.tour import stages


def test_the_tour_takes_its_minutes_goes_on_and_names_its_report(run, tmp_path, monkeypatch):
    seen = []

    def stage(one):
        seen.append(one.settings.minutes)
        return {}

    monkeypatch.setattr(stages, "STAGES", {"gather": stage})
    code, out, err = run("tour", "--to", tmp_path / "t", "--minutes", 7, "--json")
    assert code == 0 and seen == [7.0] and json.loads(out)["report"].endswith("report.html")
    code, _, err = run("tour", "--to", tmp_path / "t", "--plain")
    assert code == 0 and len(seen) == 1 and "try next" in err, "what is done is not done again"
    code, _, err = run("tour", "--to", tmp_path / "t", "--fresh", "--set", "minutes=3", "--plain")
    assert code == 0 and seen == [7.0, 3.0]
    code, _, err = run("tour", "--to", tmp_path / "u", "--set", "minuts=3")
    assert code == 2 and "minutes" in err
