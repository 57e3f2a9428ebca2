// How a test tells it what to do: one JSON object posted, {"op": …}, and one back.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

var simulatorContext = context.Background()

type request struct {
	Op      string
	VM      string
	Machine machineSpec
	Disk    diskSpec
	Rule    *rule
	Name    string
	On      *bool
	Value   string
	Seconds float64
	Number  int64
}

func (f *fake) serveControl(w http.ResponseWriter, r *http.Request) {
	var asked request
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&asked)
	var result interface{}
	if err == nil {
		result, err = f.control(&asked)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]interface{}{"result": result})
}

func (f *fake) control(asked *request) (interface{}, error) {
	switch asked.Op { // what the simulator's own lock guards, or does through it
	case "snapshot", "remove-snapshot":
		return f.controlSnapshot(asked)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	switch asked.Op {
	case "rule":
		f.rules = append(f.rules, asked.Rule)
		return nil, nil
	case "clear-rules":
		f.rules = nil
		return nil, nil
	case "window":
		f.window = asked.Number
		return nil, nil
	case "page":
		f.page = int(asked.Number)
		return nil, nil
	case "expire":
		f.expire = asked.Seconds
		return nil, nil
	case "expire-now":
		for _, each := range f.sessions {
			each.dead = true
		}
		return nil, nil
	case "sessions": // not logged out, and alive
		alive := 0
		for _, each := range f.sessions {
			if !each.dead {
				alive++
			}
		}
		return alive, nil
	case "calls":
		calls := f.calls
		f.calls = nil
		return calls, nil
	case "release":
		close(f.release)
		f.release = make(chan struct{})
		return nil, nil
	case "held":
		held := f.held
		f.held = nil
		return held, nil
	case "add-machine":
		m, err := f.addMachine(asked.Machine)
		if err != nil {
			return nil, err
		}
		return m.state(), nil
	}
	m, err := f.machineNamed(asked.VM)
	if err != nil {
		return nil, err
	}
	return f.controlMachine(asked, m)
}

func (f *fake) controlMachine(asked *request, m *machine) (interface{}, error) {
	vm := m.vm()
	switch asked.Op {
	case "machine":
		return m.state(), nil
	case "cbt-reset":
		for _, d := range m.disks {
			if d.epoch != "" {
				d.epoch, d.sequence, d.changes = newEpoch(), 0, map[int]map[int64]bool{}
			}
		}
		return nil, nil
	case "cbt": // as another client would have it
		vm.Config.ChangeTrackingEnabled = asked.On
		return nil, nil
	case "template":
		vm.Config.Template = *asked.On
		vm.Summary.Config.Template = *asked.On
		return nil, nil
	case "rename":
		vm.Name, vm.Config.Name, vm.Summary.Config.Name = asked.Name, asked.Name, asked.Name
		return nil, nil
	case "power":
		state := types.VirtualMachinePowerStatePoweredOff
		if *asked.On {
			state = types.VirtualMachinePowerStatePoweredOn
		}
		vm.Runtime.PowerState, vm.Summary.Runtime.PowerState = state, state
		return nil, nil
	case "consolidation-needed":
		vm.Runtime.ConsolidationNeeded = asked.On
		return nil, nil
	case "migrating":
		m.migrate(*asked.On)
		return nil, nil
	case "grow":
		return nil, m.grow(asked.Disk.Key, asked.Number)
	case "add-disk":
		return nil, m.addDisk(asked.Disk)
	case "remove-disk":
		m.removeDisk(asked.Disk.Key)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown op %q", asked.Op)
}

// --- state ---

type diskState struct {
	Key      int32  `json:"key"`
	FileName string `json:"file_name"`
	ID       string `json:"change_id"`
	Size     int64  `json:"size"`
}

type snapshotState struct {
	Ref  string `json:"ref"`
	Name string `json:"name"`
}

type machineState struct {
	Ref          string          `json:"ref"`
	Path         string          `json:"path"`
	InstanceUUID string          `json:"instance_uuid"`
	UUID         string          `json:"uuid"`
	CBT          bool            `json:"cbt"`
	Disks        []diskState     `json:"disks"`
	Snapshots    []snapshotState `json:"snapshots"`
}

func (m *machine) state() machineState {
	vm := m.vm()
	state := machineState{Ref: m.ref.Value, Path: inventoryPath(vm), InstanceUUID: vm.Config.InstanceUuid,
		UUID: vm.Config.Uuid, Disks: []diskState{}, Snapshots: []snapshotState{}}
	state.CBT = vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	for _, each := range vm.Config.Hardware.Device {
		if d, ok := each.(*types.VirtualDisk); ok {
			state.Disks = append(state.Disks, diskState{d.Key, fileNameOf(d.Backing),
				m.disks[d.Key].id(), d.CapacityInBytes})
		}
	}
	if vm.Snapshot != nil {
		state.Snapshots = listed(state.Snapshots, vm.Snapshot.RootSnapshotList)
	}
	return state
}

func listed(into []snapshotState, tree []types.VirtualMachineSnapshotTree) []snapshotState {
	for _, each := range tree {
		into = append(into, snapshotState{each.Snapshot.Value, each.Name})
		into = listed(into, each.ChildSnapshotList)
	}
	return into
}

func inventoryPath(entity mo.Entity) string {
	path := ""
	for {
		e := entity.Entity()
		if e.Parent == nil {
			return path
		}
		path = "/" + e.Name + path
		entity = simulator.Map.Get(*e.Parent).(mo.Entity)
	}
}

// --- changes ---

func (f *fake) controlSnapshot(asked *request) (interface{}, error) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	m, err := f.machineNamed(asked.VM)
	if err != nil {
		return nil, err
	}
	if asked.Op == "snapshot" {
		body := m.vm().CreateSnapshotTask(&types.CreateSnapshot_Task{This: m.ref, Name: asked.Name})
		task := body.(*methods.CreateSnapshot_TaskBody).Res.Returnval
		ref := simulator.Map.Get(task).(*simulator.Task).Info.Result.(types.ManagedObjectReference)
		return ref.Value, f.freeze(m, ref)
	}
	ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: asked.Name}
	snapshot, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return nil, fmt.Errorf("no snapshot %q", asked.Name)
	}
	m.withFlat(func() {
		snapshot.RemoveSnapshotTask(&simulator.Context{Map: simulator.Map, Context: simulatorContext},
			&types.RemoveSnapshot_Task{This: ref})
	})
	f.thaw(m, ref.Value)
	return nil, nil
}

// A task of the machine that does not end.
func (m *machine) migrate(on bool) {
	vm := m.vm()
	if !on {
		if m.migration != nil {
			simulator.Map.Update(m.migration, []types.PropertyChange{
				{Name: "info.state", Val: types.TaskInfoStateSuccess}})
		}
		m.migration = nil
		vm.RecentTask = nil
		return
	}
	m.migration = simulator.CreateTask(m.ref, "relocateTask", nil)
	simulator.Map.Update(m.migration, []types.PropertyChange{
		{Name: "info.state", Val: types.TaskInfoStateRunning},
		{Name: "info.progress", Val: int32(42)}})
	vm.RecentTask = []types.ManagedObjectReference{m.migration.Self}
}

func (m *machine) grow(key int32, size int64) error {
	d, device := m.disks[key], m.device(key)
	if d == nil || device == nil {
		return fmt.Errorf("no disk %d", key)
	}
	if err := os.Truncate(d.live, size); err != nil {
		return err
	}
	device.CapacityInBytes, device.CapacityInKB = size, size/1024
	return nil
}

func (m *machine) addDisk(spec diskSpec) error {
	device, err := m.newDisk(spec, len(m.disks))
	if err != nil {
		return err
	}
	label := fmt.Sprintf("Hard disk %d", len(m.disks))
	device.DeviceInfo = &types.Description{Label: label, Summary: label}
	vm := m.vm()
	if vm.Config.Hardware.Device, err = withController(vm.Config.Hardware.Device, device); err != nil {
		return err
	}
	m.setBacking(spec)
	return nil
}

func withController(devices []types.BaseVirtualDevice, device *types.VirtualDisk) ([]types.BaseVirtualDevice, error) {
	found := false
	for _, each := range devices {
		d := each.GetVirtualDevice()
		if d.Key == device.Key {
			return devices, fmt.Errorf("there is a device %d", d.Key)
		}
		found = found || d.Key == device.ControllerKey
	}
	if !found {
		devices = append(devices, newController(device.ControllerKey))
	}
	return append(devices, device), nil
}

func (m *machine) removeDisk(key int32) {
	vm := m.vm()
	var left []types.BaseVirtualDevice
	for _, each := range vm.Config.Hardware.Device {
		if each.GetVirtualDevice().Key != key {
			left = append(left, each)
		}
	}
	vm.Config.Hardware.Device = left
	if d := m.disks[key]; d != nil && d.previous != "" && strings.Contains(d.previous, "previous-") {
		_ = os.Remove(d.previous)
	}
	delete(m.disks, key)
}
