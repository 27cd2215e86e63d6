from tests.test_policy import *
def test_x(two_tables, monkeypatch):
    assume(two_tables, POLICY, monkeypatch)
    with enable_iam_authentication():
        w=fail_over(two_tables)
    for c in two_tables.calls: print(c[0], {k:v for k,v in c[1].items() if k not in('Version','Action')})
    print(open(two_tables.root+'/nat_config.py').read()); assert 0
