// Machines, their disks, and what a snapshot does to them.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

const datastore = "LocalDS_0"

type disk struct {
	key      int32
	live     string // the raw file that the guest writes to
	fileName string // of the base; with snapshots the machine runs on a delta
	previous string // the copy that the next one is compared with
	epoch    string // empty: not tracked
	sequence int
	changes  map[int]map[int64]bool // sequence -> granules changed since the one before
}

type machine struct {
	name      string
	ref       types.ManagedObjectReference
	disks     map[int32]*disk
	snapshots int // made so far
	migration *simulator.Task
}

type fake struct {
	mutex    sync.Mutex // of all below, and of what a snapshot does
	folder   string
	frozen   string
	user     string
	password string
	inner    http.Handler
	client   *vim25.Client
	machines map[types.ManagedObjectReference]*machine
	copies   map[string]map[int32]*frozenDisk // by snapshot
	sessions map[string]*session
	expire   float64 // seconds that a session lives; 0: for ever
	window   int64   // bytes of the disk that one answer about changes covers
	page     int     // objects in one answer; 0: all
	pages    map[string][]string
	rules    []*rule
	calls    []callRecord
	held     []string                                       // methods of calls that were made to wait
	release  chan struct{}                                  // closed: they wait no longer
	running  map[types.ManagedObjectReference]chan struct{} // tasks that can be cancelled
}

func newFake(folder, user, password string, service *simulator.Service,
	inner http.Handler) (*fake, error) {
	client, err := vim25.NewClient(context.Background(), service)
	if err != nil {
		return nil, err
	}
	f := &fake{
		folder: folder, frozen: filepath.Join(folder, "frozen"), user: user, password: password,
		inner: inner, client: client, window: 16 << 20,
		machines: map[types.ManagedObjectReference]*machine{},
		copies:   map[string]map[int32]*frozenDisk{},
		sessions: map[string]*session{}, pages: map[string][]string{},
		running: map[types.ManagedObjectReference]chan struct{}{},
		release: make(chan struct{}),
	}
	return f, os.Mkdir(f.frozen, 0700)
}

type diskSpec struct {
	Key     int32
	Path    string // the raw file; it exists, and its size is the disk's
	Mode    string // persistent
	Backing string // flat, sesparse, rdm (physical), rdm-virtual
	Sharing string
}

type machineSpec struct {
	Name    string
	Folder  string // below the datacenter's machines
	Version string
	Off     bool
	Disks   []diskSpec
	Tools   string // state of the guest's tools
	// "efi" where none is said
	Firmware string
}

func (f *fake) addMachine(spec machineSpec) (*machine, error) {
	ctx := context.Background()
	finder := find.NewFinder(f.client, false)
	dc, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, err
	}
	finder.SetDatacenter(dc)
	folders, err := dc.Folders(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := finder.ResourcePool(ctx, "DC0_C0/Resources")
	if err != nil {
		return nil, err
	}
	parent := folders.VmFolder
	for _, name := range strings.FieldsFunc(spec.Folder, func(r rune) bool { return r == '/' }) {
		at := parent.InventoryPath
		if at == "" {
			at = "/" + dc.Name() + "/vm"
		}
		next, err := finder.Folder(ctx, at+"/"+name)
		if err != nil {
			if next, err = parent.CreateFolder(ctx, name); err != nil {
				return nil, err
			}
		}
		next.InventoryPath = at + "/" + name
		parent = next
	}
	if spec.Firmware == "" {
		spec.Firmware = "efi"
	}
	m := &machine{name: spec.Name, disks: map[int32]*disk{}}
	config := types.VirtualMachineConfigSpec{
		Name: spec.Name, GuestId: "debian10_64Guest", Version: spec.Version, NumCPUs: 2, MemoryMB: 1024,
		Firmware: spec.Firmware, Uuid: newUUID("4216f6b"), InstanceUuid: newUUID("5032a1c"),
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + datastore + "]"},
	}
	devices := object.VirtualDeviceList{}
	have := map[int32]bool{200: true, 201: true} // every machine has two IDE controllers
	for i, d := range spec.Disks {
		added, err := m.newDisk(d, i)
		if err != nil {
			return nil, err
		}
		if key := added.ControllerKey; !have[key] {
			have[key] = true
			devices = append(devices, newController(key))
		}
		devices = append(devices, added)
	}
	nic := esx.EthernetCard
	nic.DeviceInfo = nil
	devices = append(devices, &nic)
	config.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return nil, err
	}
	for _, change := range config.DeviceChange { // the files are made in the order of the keys
		each := change.GetVirtualDeviceConfigSpec()
		if _, ok := each.Device.(*types.VirtualDisk); ok {
			each.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
		}
	}
	task, err := parent.CreateVM(ctx, config, pool, nil)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return nil, err
	}
	m.ref = info.Result.(types.ManagedObjectReference)
	if !spec.Off {
		task, err := object.NewVirtualMachine(f.client, m.ref).PowerOn(ctx)
		if err != nil {
			return nil, err
		}
		if err := task.Wait(ctx); err != nil {
			return nil, err
		}
	}
	vm := m.vm()
	vm.Capability.ChangeTrackingSupported = types.NewBool(true)
	vm.Runtime.ConsolidationNeeded = types.NewBool(false)
	vm.Guest.ToolsRunningStatus = "guestToolsRunning"
	vm.Guest.ToolsVersionStatus2 = "guestToolsCurrent"
	if spec.Tools != "" {
		vm.Guest.ToolsRunningStatus = spec.Tools
	}
	for _, d := range spec.Disks {
		m.setBacking(d)
	}
	nvram := filepath.Join(storeFolder(), spec.Name, spec.Name+".nvram")
	if err := os.WriteFile(nvram, []byte(strings.Repeat("nvram of "+spec.Name+"\n", 256)), 0600); err != nil {
		return nil, err
	}
	vm.Config.ExtraConfig = append(vm.Config.ExtraConfig,
		&types.OptionValue{Key: "nvram", Value: filepath.Base(nvram)},
		&types.OptionValue{Key: "guestinfo.secret", Value: "known to the guest alone"})
	f.machines[m.ref] = m
	return m, nil
}

func storeFolder() string {
	store := simulator.Map.Any("Datastore").(*simulator.Datastore)
	return store.Info.GetDatastoreInfo().Url
}

// SCSI, SATA and NVMe keys as the product gives them; the disks' follow from them.
func controllerOf(key int32) (controller, unit int32) {
	switch {
	case key >= 32000:
		return 31000 + (key-32000)/15, (key - 32000) % 15
	case key >= 16000:
		return 15000 + (key-16000)/30, (key - 16000) % 30
	case key >= 3000:
		return 200 + (key-3000)/2, (key - 3000) % 2
	}
	return 1000 + (key-2000)/16, (key - 2000) % 16
}

func newController(key int32) types.BaseVirtualDevice {
	controller := types.VirtualController{VirtualDevice: types.VirtualDevice{Key: key}}
	controller.BusNumber = key % 1000
	switch {
	case key >= 31000:
		return &types.VirtualNVMEController{VirtualController: controller}
	case key >= 15000:
		return &types.VirtualAHCIController{
			VirtualSATAController: types.VirtualSATAController{VirtualController: controller}}
	}
	return &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
		VirtualController: controller, SharedBus: types.VirtualSCSISharingNoSharing}}
}

func newUUID(head string) string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	return fmt.Sprintf("%s%x-%x-%x-%x-%x", head, id[0]&15, id[4:6], id[6:8], id[8:10], id[10:16])
}

// The device, and the disk in m.
func (m *machine) newDisk(spec diskSpec, index int) (*types.VirtualDisk, error) {
	info, err := os.Stat(spec.Path)
	if err != nil {
		return nil, err
	}
	name := m.name
	if index > 0 {
		name = fmt.Sprintf("%s_%d", m.name, index)
	}
	d := &disk{key: spec.Key, live: spec.Path,
		fileName: fmt.Sprintf("[%s] %s/%s.vmdk", datastore, m.name, name)}
	m.disks[d.key] = d
	controller, unit := controllerOf(d.key)
	backing := &types.VirtualDiskFlatVer2BackingInfo{
		DiskMode: "persistent", ThinProvisioned: types.NewBool(true), Uuid: newUUID("6000C29")}
	backing.FileName = d.fileName
	return &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{Key: d.key, ControllerKey: controller,
			UnitNumber: &unit, Backing: backing},
		CapacityInKB: info.Size() / 1024, CapacityInBytes: info.Size(),
	}, nil
}

// What the simulator would not take while the disk was made.
func (m *machine) setBacking(spec diskSpec) {
	device := m.device(spec.Key)
	flat := device.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if spec.Mode != "" {
		flat.DiskMode = spec.Mode
	}
	flat.Sharing = spec.Sharing
	switch spec.Backing {
	case "sesparse":
		device.Backing = &types.VirtualDiskSeSparseBackingInfo{
			VirtualDeviceFileBackingInfo: flat.VirtualDeviceFileBackingInfo,
			DiskMode:                     flat.DiskMode, Uuid: flat.Uuid}
	case "rdm", "rdm-virtual":
		mode := map[string]string{"rdm": "physicalMode", "rdm-virtual": "virtualMode"}[spec.Backing]
		device.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			VirtualDeviceFileBackingInfo: flat.VirtualDeviceFileBackingInfo,
			DiskMode:                     flat.DiskMode, Uuid: flat.Uuid, LunUuid: "02000", CompatibilityMode: mode,
			DeviceName: "vml.02000", Sharing: flat.Sharing}
	}
}

func (m *machine) vm() *simulator.VirtualMachine {
	return simulator.Map.Get(m.ref).(*simulator.VirtualMachine)
}

func (m *machine) device(key int32) *types.VirtualDisk {
	for _, each := range m.vm().Config.Hardware.Device {
		if d, ok := each.(*types.VirtualDisk); ok && d.Key == key {
			return d
		}
	}
	return nil
}

// The simulator knows flat backings alone in some places: others are hidden meanwhile.
func (m *machine) withFlat(do func()) {
	hidden := map[int32]types.BaseVirtualDeviceBackingInfo{}
	for key := range m.disks {
		device := m.device(key)
		if device == nil {
			continue
		}
		if _, ok := device.Backing.(*types.VirtualDiskFlatVer2BackingInfo); !ok {
			hidden[key] = device.Backing
			flat := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent"}
			flat.FileName = m.disks[key].fileName
			device.Backing = flat
		}
	}
	do()
	for key, backing := range hidden {
		if device := m.device(key); device != nil {
			device.Backing = backing
		}
	}
}

// A backing of its own with another file name and change id.
func copyBacking(of types.BaseVirtualDeviceBackingInfo, fileName, id string) types.BaseVirtualDeviceBackingInfo {
	switch old := of.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		flat := *old
		flat.FileName, flat.ChangeId, flat.Parent = fileName, id, nil
		return &flat
	case *types.VirtualDiskSeSparseBackingInfo:
		sparse := *old
		sparse.FileName, sparse.ChangeId, sparse.Parent = fileName, id, nil
		return &sparse
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		raw := *old
		raw.FileName, raw.ChangeId, raw.Parent = fileName, id, nil
		return &raw
	}
	return of
}

func fileNameOf(backing types.BaseVirtualDeviceBackingInfo) string {
	if file, ok := backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
		return file.GetVirtualDeviceFileBackingInfo().FileName
	}
	return ""
}

func snapshotable(d *types.VirtualDisk) bool {
	switch backing := d.Backing.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		return !strings.HasPrefix(backing.DiskMode, "independent")
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		return backing.CompatibilityMode == "virtualMode"
	}
	return true
}

// The simulator has made the snapshot: freezes the disks, and lets the machine run on deltas.
func (f *fake) freeze(m *machine, ref types.ManagedObjectReference) error {
	snapshot := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	folder := filepath.Join(f.frozen, ref.Value)
	if err := os.Mkdir(folder, 0700); err != nil {
		return err
	}
	vm := m.vm()
	tracking := vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	m.snapshots++
	copies := map[int32]*frozenDisk{}
	devices := []types.BaseVirtualDevice{}
	index := ""
	for _, each := range vm.Config.Hardware.Device {
		device, ok := each.(*types.VirtualDisk)
		if !ok {
			devices = append(devices, each)
			continue
		}
		kept := *device
		devices = append(devices, &kept)
		d := m.disks[device.Key]
		if !snapshotable(device) {
			continue
		}
		copied := &frozenDisk{path: filepath.Join(folder, fmt.Sprintf("%d.raw", d.key)),
			fileName: fileNameOf(device.Backing), size: device.CapacityInBytes}
		if err := copySparse(d.live, copied.path, copied.size); err != nil {
			return err
		}
		if err := d.advance(copied, tracking, vm.Runtime.PowerState, f.folder); err != nil {
			return err
		}
		copies[d.key] = copied
		index += fmt.Sprintf("%s %d %s\n", m.ref.Value, d.key, copied.fileName)
		kept.Backing = copyBacking(device.Backing, copied.fileName, copied.id)
		delta := strings.TrimSuffix(d.fileName, ".vmdk") + fmt.Sprintf("-%06d.vmdk", m.snapshots)
		device.Backing = copyBacking(device.Backing, delta, d.id())
		if flat, ok := device.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			flat.Parent, _ = copyBacking(kept.Backing, copied.fileName, "").(*types.VirtualDiskFlatVer2BackingInfo)
		}
	}
	config := *vm.Config
	config.Hardware.Device = devices
	snapshot.Config = config
	f.copies[ref.Value] = copies
	// The index comes last, and at once: who finds it finds the copies.
	if err := os.WriteFile(filepath.Join(folder, "index.new"), []byte(index), 0600); err != nil {
		return err
	}
	return os.Rename(filepath.Join(folder, "index.new"), filepath.Join(folder, "index"))
}

func (d *disk) id() string {
	if d.epoch == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", d.epoch, d.sequence)
}

// Tracking begins with the stun of a snapshot: that one has no change id yet,
// unless the machine is off.  From then on each snapshot is one step.
func (d *disk) advance(copied *frozenDisk, tracking bool, power types.VirtualMachinePowerState,
	folder string) error {
	if !tracking {
		d.epoch = ""
		return nil
	}
	begins := d.epoch == ""
	if begins {
		d.epoch, d.sequence, d.changes = newEpoch(), 0, map[int]map[int64]bool{}
	} else {
		changed, err := differences(d.previous, copied.path, copied.size)
		if err != nil {
			return err
		}
		d.sequence++
		d.changes[d.sequence] = changed
	}
	// By a link of its own the copy outlives the snapshot.
	if d.previous != "" {
		_ = os.Remove(d.previous)
	}
	d.previous = filepath.Join(folder, fmt.Sprintf("previous-%s", strings.ReplaceAll(d.id(), "/", "-")))
	if err := os.Link(copied.path, d.previous); err != nil {
		return err
	}
	if !begins || power == types.VirtualMachinePowerStatePoweredOff {
		copied.id = d.id()
	}
	return nil
}

// The snapshot is gone: so are its copies, and the machine is back on what is left.
func (f *fake) thaw(m *machine, gone string) {
	_ = os.RemoveAll(filepath.Join(f.frozen, gone))
	delete(f.copies, gone)
	vm := m.vm()
	if vm.Snapshot != nil && len(vm.Snapshot.RootSnapshotList) > 0 {
		return
	}
	for key, d := range m.disks {
		if device := m.device(key); device != nil && snapshotable(device) {
			device.Backing = copyBacking(device.Backing, d.fileName, d.id())
		}
	}
}

func (f *fake) machineNamed(name string) (*machine, error) {
	for _, m := range f.machines {
		if m.name == name || m.ref.Value == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no machine %q", name)
}
