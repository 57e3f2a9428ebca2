"""The test vCenter itself, looked at with somebody else's client (pyVmomi)."""

import contextlib
import os
import ssl
import time

import pytest

import support
import vcenter
from support import KIB, MIB

pytest.importorskip("pyVmomi", reason="python3-pyvmomi is not installed")
# pylint: disable=wrong-import-position,no-name-in-module,no-member
from pyVim.connect import Disconnect, SmartConnect  # noqa: E402
from pyVmomi import vim, vmodl  # noqa: E402

GRANULE = 64 * KIB


@pytest.fixture
def vc(scratch):
    with vcenter.fake_in(scratch) as fake:
        yield fake


@contextlib.contextmanager
def connected(vc, password=None):
    context = ssl.create_default_context(cafile=vc.ca)
    service = SmartConnect(host=vc.host, port=vc.port, user=vc.user,
                           pwd=password or vc.password, sslContext=context)
    try:
        yield service
    finally:
        with contextlib.suppress(vim.fault.NotAuthenticated):
            Disconnect(service)


def find(service, path):
    return service.content.searchIndex.FindByInventoryPath(path)


def done(task):
    """The task's result, or its fault raised."""
    support.wait_for(lambda: task.info.state in ("success", "error"), "a task")
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


def disks_of(config):
    return {each.key: each for each in config.hardware.device
            if isinstance(each, vim.vm.device.VirtualDisk)}


def changed(machine, snapshot, key, change_id, capacity):
    """All areas, by the loop that a client must make; and how many calls that took."""
    areas, at, calls = [], 0, 0
    while at < capacity:
        answer = machine.QueryChangedDiskAreas(snapshot=snapshot, deviceKey=key, startOffset=at,
                                               changeId=change_id)
        assert answer.startOffset == at and answer.length > 0
        areas += [(each.start, each.length) for each in answer.changedArea]
        at += answer.length
        calls += 1
    return areas, calls


def content(path):
    with open(path, "rb") as file:
        return file.read()


def test_what_a_client_sees(vc):
    made = vc.add_machine("web01", {2000: 3 * MIB, 2001: 2 * MIB, 16000: 5 * MIB}, folder="a/b")
    with connected(vc) as service:
        machine = find(service, "DC0/vm/a/b/web01")
        assert machine._moId == made.ref and made.path == "/DC0/vm/a/b/web01"
        disks = disks_of(machine.config)
        assert {key: disk.capacityInBytes for key, disk in disks.items()} == \
            {2000: 3 * MIB, 2001: 2 * MIB, 16000: 5 * MIB}
        assert disks[2001].backing.fileName == "[LocalDS_0] web01/web01_1.vmdk"
        assert machine.runtime.powerState == "poweredOn" and vc.sessions() == 1
        assert machine.snapshot is None and not machine.config.changeTrackingEnabled
    assert vc.sessions() == 0
    methods = {each["method"] for each in vc.calls()}
    assert {"Login", "Logout", "FindByInventoryPath"} <= methods


def test_wrong_password_and_expiry(vc):
    with pytest.raises(vim.fault.InvalidLogin):
        with connected(vc, password="nonsense"):
            pass
    with connected(vc) as service:
        find(service, "DC0/vm")
        vc.expire_sessions()
        with pytest.raises(vim.fault.NotAuthenticated):
            find(service, "DC0/vm")


def test_changed_areas(vc):
    size = 40 * MIB + 3 * KIB
    made = vc.add_machine("web01", {2000: size, 2001: MIB})
    made.write(2000, 5 * MIB, b"a" * 100 * KIB)
    with connected(vc) as service:
        machine = find(service, "DC0/vm/web01")

        def snapshot():
            return done(machine.CreateSnapshot_Task(name="s", memory=False, quiesce=False))

        def remove(taken):
            done(taken.RemoveSnapshot_Task(removeChildren=False))

        done(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        stun = snapshot()
        assert disks_of(stun.config)[2000].backing.changeId is None
        with pytest.raises(vmodl.fault.InvalidArgument):
            machine.QueryChangedDiskAreas(stun, 2099, 0, "*")
        remove(stun)

        first = snapshot()
        disk = disks_of(first.config)[2000]
        assert disk.backing.changeId and disk.backing.fileName == "[LocalDS_0] web01/web01.vmdk"
        running = disks_of(machine.config)[2000].backing
        assert running.fileName == "[LocalDS_0] web01/web01-000002.vmdk"
        areas, calls = changed(machine, first, 2000, "*", size)
        assert areas == [(5 * MIB, 128 * KIB)] and calls == 3
        made.write(2000, 5 * MIB, b"b")
        assert content(made.frozen(first._moId, 2000))[5 * MIB:5 * MIB + 1] == b"a"
        with open(os.path.join(vc.frozen, first._moId, "index"), encoding="ascii") as file:
            assert file.readline() == f"{made.ref} 2000 [LocalDS_0] web01/web01.vmdk\n"
        remove(first)
        assert not os.path.exists(os.path.join(vc.frozen, first._moId))
        assert disks_of(machine.config)[2000].backing.fileName == "[LocalDS_0] web01/web01.vmdk"

        made.write(2000, size - 1, b"e")
        second = snapshot()
        areas, _ = changed(machine, second, 2000, disk.backing.changeId, size)
        assert areas == [(5 * MIB, GRANULE), (40 * MIB, 3 * KIB)]
        assert changed(machine, second, 2001, disks_of(second.config)[2001].backing.changeId,
                       MIB)[0] == []
        made.reset_cbt()
        remove(second)
        third = snapshot()
        with pytest.raises(vim.fault.FileFault):
            changed(machine, third, 2000, disk.backing.changeId, size)
        remove(third)
    assert made.snapshots() == [] and os.listdir(vc.frozen) == []


def test_failures_on_demand(vc):
    made = vc.add_machine("web01", {2000: MIB}, cbt=True)
    with connected(vc) as service:
        machine = find(service, "DC0/vm/web01")
        vc.fail("CreateSnapshot_Task", task="ApplicationQuiesceFault", quiesce=True)
        with pytest.raises(vim.fault.ApplicationQuiesceFault):
            done(machine.CreateSnapshot_Task("s", memory=False, quiesce=True))
        assert made.snapshots() == []
        vc.fail("CreateSnapshot_Task", running=0.2)
        task = machine.CreateSnapshot_Task("s", memory=False, quiesce=False)
        assert task.info.state == "running"
        snapshot = done(task)
        assert made.snapshots() == ["s"]
        vc.fail("QueryChangedDiskAreas", fault="FileFault", message="no",
                detail={"File": "[LocalDS_0] x.vmdk"})
        with pytest.raises(vim.fault.FileFault) as caught:
            machine.QueryChangedDiskAreas(snapshot, 2000, 0, "*")
        assert caught.value.file == "[LocalDS_0] x.vmdk"
        vc.fail("RemoveSnapshot_Task", running=60)
        task = snapshot.RemoveSnapshot_Task(removeChildren=False)
        began = time.monotonic()
        task.CancelTask()
        with pytest.raises(vmodl.fault.RequestCanceled):
            done(task)
        assert time.monotonic() - began < 30
        vc.fail("RemoveSnapshot_Task", task="GenericVmConfigFault", detail={"Reason": "locked"})
        with pytest.raises(vim.fault.GenericVmConfigFault):
            done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        assert made.snapshots() == ["s"]
        done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        made.set_migrating()
        assert machine.recentTask[0].info.state == "running"
        with pytest.raises(vim.fault.TaskInProgress):
            done(machine.CreateSnapshot_Task("s", memory=False, quiesce=False))
        made.set_migrating(False)
        vc.fail("FindByUuid", status=503)
        with pytest.raises(Exception):
            service.content.searchIndex.FindByUuid(None, made.uuid, True, False)
        assert service.content.searchIndex.FindByUuid(None, made.uuid, True, False)


def test_odd_disks_and_changes_of_the_machine(vc):
    made = vc.add_machine("web01", {
        2000: MIB, 2001: {"size": MIB, "mode": "independent_persistent"},
        2002: {"size": MIB, "backing": "rdm"}, 2003: {"size": MIB, "backing": "sesparse"},
        2004: {"size": MIB, "sharing": "sharingMultiWriter"}}, cbt=True)
    made.add_disk(2016, MIB)
    made.grow(2000, 2 * MIB)
    with connected(vc) as service:
        machine = find(service, "DC0/vm/web01")
        snapshot = done(machine.CreateSnapshot_Task("s", memory=False, quiesce=False))
        disks = disks_of(snapshot.config)
        assert disks[2000].capacityInBytes == 2 * MIB
        assert sorted(key for key, disk in disks.items() if disk.backing.changeId) == \
            [2000, 2003, 2004]
        assert disks[2002].backing.compatibilityMode == "physicalMode"
        assert disks[2016].controllerKey == 1001
        assert sorted(os.listdir(os.path.join(vc.frozen, snapshot._moId))) == \
            ["2000.raw", "2003.raw", "2004.raw", "2016.raw", "index"]
        done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        done(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    made.remove_disk(2016)
    made.set_template()
    assert not made.state()["cbt"]


def test_pages(vc):
    for nr in range(5):
        vc.add_machine(f"vm{nr}", {2000: MIB})
    vc.set_page(2)
    with connected(vc) as service:
        content_of = service.content
        view = content_of.viewManager.CreateContainerView(content_of.rootFolder,
                                                          [vim.VirtualMachine], True)
        collector = vim.PropertyCollector
        spec = collector.FilterSpec(
            propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[
                collector.TraversalSpec(path="view", type=type(view))])])
        answer = content_of.propertyCollector.RetrievePropertiesEx([spec], collector.RetrieveOptions())
        names = [each.propSet[0].val for each in answer.objects]
        assert len(names) == 2
        while answer.token:
            answer = content_of.propertyCollector.ContinueRetrievePropertiesEx(answer.token)
            names += [each.propSet[0].val for each in answer.objects]
        assert sorted(names) == [f"vm{nr}" for nr in range(5)]


def test_nothing_stays(scratch):
    with vcenter.fake_in(scratch) as fake:
        fake.add_machine("web01", {2000: MIB})
        pid = fake.popen.pid
    left = [name for name in os.listdir(fake.folder)
            if name not in ("err", "password", "ca.pem", "frozen", "web01-2000.raw")]
    assert left == [] and not os.path.exists(f"/proc/{pid}")
