"""`synthedge demo --data DIR` on the four UCI heart hospitals, where the files are at hand."""

import pytest

from clinical_data import clinical_data_dir
from synthedge_deploy.leak_search import LeakSearch
from synthedge_deploy.summary import patient_tables
from system_consortium import run_demo


@pytest.mark.slow
def test_heart_patients_arrive_and_the_coordinator_holds_none(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = clinical_data_dir()
    finished = run_demo(tmp_path_factory.mktemp("uci") / "kept", data)
    arrived = [t for t in finished.summary["transfers"] if t["state"] == "ACTIVE"]
    assert sum(transfer["rows"] for transfer in arrived) > 0
    sent = {t["transfer_id"]: t for r in finished.reports().values() for t in r["sent"]}
    got = {t["transfer_id"]: t for r in finished.reports().values() for t in r["received"]}
    for transfer in arrived:
        identifier = transfer["transfer_id"]
        assert sent[identifier]["rows"] == got[identifier]["rows"] == transfer["rows"]
    assert finished.summary["coordinator_patient_values"] == 0
    tables = [
        table
        for site in finished.sites
        for table in patient_tables(finished.folder / site, finished.cohort.dictionary)
    ]
    search = LeakSearch(tables)
    assert search.in_folder(finished.folder / "coordinator").findings == ()
    for message in finished.messages:
        assert search.in_bytes(message.method, message.data) == []
    for transfer in arrived:
        assert search.in_folder(finished.folder / transfer["donor"]).findings
