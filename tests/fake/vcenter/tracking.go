// Changed blocks.  A disk is cut into granules of 64 KiB; at each snapshot the
// frozen copy is compared with that of the snapshot before, and what differs is
// kept as the changes of that epoch.  Nothing depends on who wrote to the disk.
package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const granule = 64 << 10

const (
	seekData = 3
	seekHole = 4
)

type area struct{ Start, Length int64 }

// "52 3c a1 …-…": the product writes its epochs with blanks in them.
func newEpoch() string {
	var id [16]byte
	_, _ = rand.Read(id[:])
	first := strings.TrimSpace(fmt.Sprintf("% x", id[:8]))
	return first + "-" + strings.TrimSpace(fmt.Sprintf("% x", id[8:]))
}

// Calls do for each stretch that the file stores, widened to whole granules.
func eachStored(file *os.File, size int64, do func(from, to int64) error) error {
	for at := int64(0); at < size; {
		from, err := file.Seek(at, seekData)
		if err != nil {
			if pathError, ok := err.(*os.PathError); ok && pathError.Err == syscall.ENXIO {
				return nil
			}
			return err
		}
		to, err := file.Seek(from, seekHole)
		if err != nil {
			return err
		}
		from -= from % granule
		to += (granule - to%granule) % granule
		if to > size {
			to = size
		}
		if from < at {
			from = at
		}
		if from < to {
			if err := do(from, to); err != nil {
				return err
			}
		}
		at = to
	}
	return nil
}

// Holes stay holes.
func copySparse(from, to string, size int64) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0600)
	if err != nil {
		return err
	}
	defer target.Close()
	const ficlone = 0x40049409
	_, _, failed := syscall.Syscall(syscall.SYS_IOCTL, target.Fd(), ficlone, source.Fd())
	if failed == 0 {
		return target.Truncate(size)
	}
	if err := target.Truncate(size); err != nil {
		return err
	}
	return eachStored(source, size, func(start, end int64) error {
		reader := io.NewSectionReader(source, start, end-start)
		if _, err := target.Seek(start, io.SeekStart); err != nil {
			return err
		}
		_, err := io.Copy(target, reader)
		return err
	})
}

// Granules that are stored in either file and differ.
func differences(before, after string, size int64) (map[int64]bool, error) {
	old, err := os.Open(before)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	now, err := os.Open(after)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	changed := map[int64]bool{}
	a, b := make([]byte, granule), make([]byte, granule)
	compare := func(from, to int64) error {
		for at := from; at < to; at += granule {
			n, err := readAt(old, a, at)
			if err != nil {
				return err
			}
			m, err := readAt(now, b, at)
			if err != nil {
				return err
			}
			for ; n < m; n++ {
				a[n] = 0
			}
			if !bytes.Equal(a[:m], b[:m]) {
				changed[at/granule] = true
			}
		}
		return nil
	}
	if err := eachStored(old, size, compare); err != nil {
		return nil, err
	}
	return changed, eachStored(now, size, compare)
}

func readAt(file *os.File, buffer []byte, at int64) (int, error) {
	n, err := file.ReadAt(buffer, at)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// The granules for which test says yes, joined, cut to from..to.
func joined(from, to int64, test func(granule int64) bool) []area {
	var areas []area
	for at := from; at < to; {
		end := at - at%granule + granule
		if end > to {
			end = to
		}
		if test(at / granule) {
			last := len(areas) - 1
			if last >= 0 && areas[last].Start+areas[last].Length == at {
				areas[last].Length += end - at
			} else {
				areas = append(areas, area{at, end - at})
			}
		}
		at = end
	}
	return areas
}

// One disk in one snapshot.
type frozenDisk struct {
	path     string // the copy
	fileName string // "[datastore] folder/file.vmdk"
	size     int64
	id       string // epoch/sequence; empty: not tracked
}

type trackingFault struct {
	kind string // type of the fault
	what string // FileFault: key of its message; InvalidArgument: the parameter
}

// Areas of the disk from..to that are other than they were at id.
func (d *disk) changedSince(id string, now *frozenDisk, from, to int64) ([]area, *trackingFault) {
	if id == "*" {
		stored := map[int64]bool{}
		file, err := os.Open(now.path)
		if err != nil {
			return nil, &trackingFault{"FileFault", "vim.hostd.vmsvc.cbt.cannotGetChanges"}
		}
		defer file.Close()
		err = eachStored(file, now.size, func(start, end int64) error {
			for at := start; at < end; at += granule {
				stored[at/granule] = true
			}
			return nil
		})
		if err != nil {
			return nil, &trackingFault{"FileFault", "vim.hostd.vmsvc.cbt.cannotGetChanges"}
		}
		return joined(from, to, func(g int64) bool { return stored[g] }), nil
	}
	if now.id == "" {
		return nil, &trackingFault{"FileFault", "vim.hostd.vmsvc.cbt.noTrack"}
	}
	epoch, sequence, err := splitID(id)
	if err != nil {
		return nil, &trackingFault{"InvalidArgument", "changeId"}
	}
	nowEpoch, nowSequence, _ := splitID(now.id)
	if epoch != nowEpoch {
		return nil, &trackingFault{"FileFault", "vim.hostd.vmsvc.cbt.noEpoch"}
	}
	if sequence > nowSequence {
		return nil, &trackingFault{"InvalidArgument", "changeId"}
	}
	return joined(from, to, func(g int64) bool {
		for i := sequence + 1; i <= nowSequence; i++ {
			if d.changes[i][g] {
				return true
			}
		}
		return false
	}), nil
}

func splitID(id string) (string, int, error) {
	slash := strings.LastIndexByte(id, '/')
	if slash <= 0 {
		return "", 0, fmt.Errorf("no sequence in %q", id)
	}
	sequence, err := strconv.Atoi(id[slash+1:])
	if err != nil || sequence < 0 {
		return "", 0, fmt.Errorf("no sequence in %q", id)
	}
	return id[:slash], sequence, nil
}
