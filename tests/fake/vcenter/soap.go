// Stands before the simulator: counts calls, keeps the rules about sessions that
// it is lax with, fails where a test said so, and answers what it does not know.
package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	vimxml "github.com/vmware/govmomi/vim25/xml"
)

const cookieName = "vmware_soap_session"

type session struct {
	began time.Time
	dead  bool
}

type reference struct {
	Type  string `xml:"type,attr"`
	Value string `xml:",chardata"`
}

func (r reference) vim() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: r.Type, Value: r.Value}
}

// What any of the calls that matter here may hold.
type arguments struct {
	XMLName     xml.Name
	This        reference `xml:"_this"`
	Snapshot    reference `xml:"snapshot"`
	DeviceKey   int32     `xml:"deviceKey"`
	StartOffset int64     `xml:"startOffset"`
	ChangeID    string    `xml:"changeId"`
	Quiesce     bool      `xml:"quiesce"`
	Token       string    `xml:"token"`
}

type call struct {
	arguments
	method string
	body   []byte
	http   *http.Request
}

type callRecord struct {
	Method string `json:"method"`
	This   string `json:"this"`
	Status int    `json:"status"`
	At     string `json:"at,omitempty"` // QueryChangedDiskAreas: key, offset and change id
}

// A failure on demand, for the next Calls calls after the first Skip ones.
type rule struct {
	Method  string
	Skip    int
	Calls   int
	Quiesce *bool // CreateSnapshot_Task: only quiesced ones, or only others
	Key     int32 // QueryChangedDiskAreas: only about this disk

	Slow    float64         // seconds before anything else
	Close   bool            // hang up unasked
	Drop    bool            // do it, then hang up without the answer
	Cut     bool            // do it, and hang up in the middle of the answer
	Status  int             // with Body, instead of the simulator's answer
	Body    *string         //
	Fault   string          // a fault of this type
	Task    string          // the task fails with a fault of this type
	Detail  json.RawMessage // the fault's fields
	Message string          // and its text
	Running float64         // the task takes so many seconds, and can be cancelled
	Areas   []area          // QueryChangedDiskAreas: this answer, with
	Start   *int64          // this start and
	Length  *int64          // this length
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/folder/") {
		if user, password, ok := r.BasicAuth(); f.alive(r) || ok && user == f.user && password == f.password {
			f.inner.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path != "/sdk" || r.Method != http.MethodPost {
		f.inner.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c := &call{body: body, http: r}
	var envelope struct {
		Body struct {
			Call arguments `xml:",any"`
		} `xml:"http://schemas.xmlsoap.org/soap/envelope/ Body"`
	}
	if err := xml.Unmarshal(body, &envelope); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.arguments = envelope.Body.Call
	c.method = c.XMLName.Local
	f.answer(w, c)
}

func (f *fake) answer(w http.ResponseWriter, c *call) {
	applied := f.matching(c)
	if applied == nil {
		applied = &rule{}
	}
	if applied.Slow > 0 {
		f.mutex.Lock()
		f.held = append(f.held, c.method)
		release := f.release
		f.mutex.Unlock()
		select {
		case <-time.After(time.Duration(applied.Slow * float64(time.Second))):
		case <-release:
		case <-c.http.Context().Done():
			return
		}
	}
	if applied.Close {
		f.record(c, 0)
		hangUp(w)
		return
	}
	result := f.perform(c, applied)
	f.record(c, result.Code)
	if applied.Drop {
		hangUp(w)
		return
	}
	for name, values := range result.Header() {
		w.Header()[name] = values
	}
	bytes := result.Body.Bytes()
	w.Header().Set("Content-Length", strconv.Itoa(len(bytes)))
	w.WriteHeader(result.Code)
	if applied.Cut {
		_, _ = w.Write(bytes[:len(bytes)/2])
		hangUp(w)
		return
	}
	_, _ = w.Write(bytes)
}

func hangUp(w http.ResponseWriter) {
	if connection, _, err := w.(http.Hijacker).Hijack(); err == nil {
		connection.Close()
	}
}

func (f *fake) record(c *call, status int) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	entry := callRecord{Method: c.method, This: c.This.Value, Status: status}
	if c.method == "QueryChangedDiskAreas" {
		entry.At = fmt.Sprintf("%d %d %s", c.DeviceKey, c.StartOffset, c.ChangeID)
	}
	f.calls = append(f.calls, entry)
}

func (f *fake) matching(c *call) *rule {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for _, each := range f.rules {
		if each.Method != "*" && each.Method != c.method || each.Calls == 0 ||
			each.Quiesce != nil && *each.Quiesce != c.Quiesce ||
			each.Key != 0 && each.Key != c.DeviceKey {
			continue
		}
		if each.Skip > 0 {
			each.Skip--
			continue
		}
		each.Calls--
		return each
	}
	return nil
}

// --- sessions ---

func (f *fake) alive(r *http.Request) bool {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return false
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	known := f.sessions[cookie.Value]
	return known != nil && !known.dead &&
		(f.expire == 0 || time.Since(known.began).Seconds() < f.expire)
}

// The simulator's cookie is bare; the product's is quoted.
func (f *fake) loggedIn(result *httptest.ResponseRecorder) {
	for _, cookie := range result.Result().Cookies() {
		if cookie.Name == cookieName {
			f.mutex.Lock()
			f.sessions[cookie.Value] = &session{began: time.Now()}
			f.mutex.Unlock()
			result.Header().Set("Set-Cookie",
				fmt.Sprintf("%s=\"%s\"; Path=/; HttpOnly; Secure", cookieName, cookie.Value))
		}
	}
}

// --- what is done ---

func (f *fake) perform(c *call, applied *rule) *httptest.ResponseRecorder {
	if applied.Status != 0 || applied.Body != nil {
		return plain(applied)
	}
	if applied.Fault != "" {
		return faultAnswer(newFault(applied.Fault, applied.Detail), applied.Message)
	}
	anyone := c.method == "RetrieveServiceContent" || c.method == "Login"
	if !f.alive(c.http) {
		c.http.Header.Del("Cookie")
		if !anyone {
			return faultAnswer(&types.NotAuthenticated{NoPermission: types.NoPermission{
				Object: c.This.vim(), PrivilegeId: "System.View"}}, "The session is not authenticated.")
		}
	}
	if applied.Task != "" {
		return f.newTask(c, nil, newFault(applied.Task, applied.Detail))
	}
	if applied.Running > 0 {
		return f.longTask(c, applied.Running)
	}
	return f.do(c, applied)
}

func (f *fake) do(c *call, applied *rule) *httptest.ResponseRecorder {
	m := f.machineOf(c)
	switch c.method {
	case "Login":
		result := f.pass(c)
		f.loggedIn(result)
		return result
	case "Logout":
		if cookie, err := c.http.Cookie(cookieName); err == nil {
			f.mutex.Lock()
			delete(f.sessions, cookie.Value)
			f.mutex.Unlock()
		}
		return f.pass(c)
	case "RetrievePropertiesEx":
		return f.firstPage(f.pass(c))
	case "ContinueRetrievePropertiesEx":
		return f.nextPage(c.Token)
	case "CancelTask":
		return f.cancelTask(c)
	}
	if m == nil {
		return f.pass(c)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	switch c.method {
	case "CreateSnapshot_Task":
		if m.migration != nil {
			return f.newTask(c, nil, &types.TaskInProgress{Task: m.migration.Self})
		}
		result := f.pass(c)
		if ref, ok := taskOf(result).Info.Result.(types.ManagedObjectReference); ok {
			if err := f.freeze(m, ref); err != nil {
				return faultAnswer(&types.SystemError{Reason: err.Error()}, err.Error())
			}
		}
		return result
	case "RemoveSnapshot_Task":
		var result *httptest.ResponseRecorder
		m.withFlat(func() { result = f.pass(c) })
		if result.Code == http.StatusOK {
			f.thaw(m, c.This.Value)
			taskOf(result).Info.Entity = &m.ref // the simulator names the snapshot
		}
		return result
	case "ReconfigVM_Task":
		var result *httptest.ResponseRecorder
		m.withFlat(func() { result = f.pass(c) })
		return result
	case "ConsolidateVMDisks_Task":
		simulator.Map.Update(m.vm(), []types.PropertyChange{{Name: "runtime.consolidationNeeded", Val: false}})
		return f.newTask(c, nil, nil)
	case "QueryChangedDiskAreas":
		return f.changedAreas(c, m, applied)
	}
	return f.pass(c)
}

func (f *fake) pass(c *call) *httptest.ResponseRecorder {
	request := c.http.Clone(c.http.Context())
	request.Body = io.NopCloser(bytes.NewReader(c.body))
	result := httptest.NewRecorder()
	f.inner.ServeHTTP(result, request)
	return result
}

// Of a call to a machine, or to one of its snapshots.
func (f *fake) machineOf(c *call) *machine {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	switch c.This.Type {
	case "VirtualMachine":
		return f.machines[c.This.vim()]
	case "VirtualMachineSnapshot":
		if s, ok := simulator.Map.Get(c.This.vim()).(*simulator.VirtualMachineSnapshot); ok {
			return f.machines[s.Vm]
		}
	}
	return nil
}

func (f *fake) changedAreas(c *call, m *machine, applied *rule) *httptest.ResponseRecorder {
	frozen := f.copies[c.Snapshot.Value]
	if frozen == nil {
		return faultAnswer(&types.InvalidArgument{InvalidProperty: "snapshot"},
			"A specified parameter was not correct: snapshot")
	}
	now, d := frozen[c.DeviceKey], m.disks[c.DeviceKey]
	if now == nil || d == nil {
		return faultAnswer(&types.InvalidArgument{InvalidProperty: "deviceKey"},
			"A specified parameter was not correct: deviceKey")
	}
	if c.StartOffset < 0 || c.StartOffset >= now.size {
		return faultAnswer(&types.InvalidArgument{InvalidProperty: "startOffset"},
			"A specified parameter was not correct: startOffset")
	}
	start, length := c.StartOffset, now.size-c.StartOffset
	if length > f.window {
		length = f.window
	}
	areas, failed := d.changedSince(c.ChangeID, now, start, start+length)
	if failed != nil && failed.kind == "InvalidArgument" {
		return faultAnswer(&types.InvalidArgument{InvalidProperty: failed.what},
			"A specified parameter was not correct: "+failed.what)
	}
	if failed != nil {
		fault := &types.FileFault{File: now.fileName}
		fault.FaultMessage = []types.LocalizableMessage{{Key: failed.what}}
		return faultAnswer(fault, "Error caused by file "+now.fileName)
	}
	if applied.Areas != nil {
		areas = applied.Areas
	}
	if applied.Start != nil {
		start = *applied.Start
	}
	if applied.Length != nil {
		length = *applied.Length
	}
	var inner strings.Builder
	fmt.Fprintf(&inner, "<returnval><startOffset>%d</startOffset><length>%d</length>", start, length)
	for _, a := range areas {
		fmt.Fprintf(&inner, "<changedArea><start>%d</start><length>%d</length></changedArea>",
			a.Start, a.Length)
	}
	inner.WriteString("</returnval>")
	return wrapped(c.method, inner.String())
}

// --- answers of our own ---

const envelopeHead = xml.Header + `<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/" ` +
	`xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" ` +
	`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">` + "\n<soapenv:Body>\n"
const envelopeTail = "\n</soapenv:Body>\n</soapenv:Envelope>\n"

func answer(status int, inner string) *httptest.ResponseRecorder {
	result := httptest.NewRecorder()
	result.Header().Set("Content-Type", "text/xml; charset=utf-8")
	result.WriteHeader(status)
	result.WriteString(envelopeHead + inner + envelopeTail)
	return result
}

func wrapped(method, inner string) *httptest.ResponseRecorder {
	return answer(http.StatusOK,
		fmt.Sprintf("<%sResponse xmlns=\"urn:vim25\">%s</%sResponse>", method, inner, method))
}

func plain(applied *rule) *httptest.ResponseRecorder {
	result := httptest.NewRecorder()
	result.Header().Set("Content-Type", "text/xml; charset=utf-8")
	status := applied.Status
	if status == 0 {
		status = http.StatusOK
	}
	result.WriteHeader(status)
	if applied.Body != nil {
		result.WriteString(*applied.Body)
	}
	return result
}

// A fault of any type that the API knows, its fields from JSON.
func newFault(name string, detail json.RawMessage) types.BaseMethodFault {
	kind, ok := types.TypeFunc()(name)
	if !ok {
		return &types.SystemError{Reason: "the test asked for an unknown fault " + name}
	}
	value := reflect.New(kind).Interface()
	if len(detail) > 0 {
		if err := json.Unmarshal(detail, value); err != nil {
			return &types.SystemError{Reason: err.Error()}
		}
	}
	return value.(types.BaseMethodFault)
}

func faultAnswer(fault types.BaseMethodFault, message string) *httptest.ResponseRecorder {
	kind := reflect.TypeOf(fault).Elem().Name()
	var inner, text bytes.Buffer
	encoder := vimxml.NewEncoder(&inner)
	start := vimxml.StartElement{Name: vimxml.Name{Local: kind + "Fault"}}
	start.Attr = []vimxml.Attr{
		{Name: vimxml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		{Name: vimxml.Name{Local: "xsi:type"}, Value: kind}}
	if err := encoder.EncodeElement(fault, start); err != nil {
		panic(err)
	}
	_ = encoder.Flush()
	_ = xml.EscapeText(&text, []byte(message))
	return answer(http.StatusInternalServerError, fmt.Sprintf(
		"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>%s</faultstring><detail>%s</detail></soapenv:Fault>",
		text.String(), inner.String()))
}

// --- tasks ---

func taskOf(result *httptest.ResponseRecorder) *simulator.Task {
	text := result.Body.String()
	from := strings.Index(text, `type="Task">`)
	if from < 0 {
		return &simulator.Task{}
	}
	text = text[from+len(`type="Task">`):]
	ref := types.ManagedObjectReference{Type: "Task", Value: text[:strings.IndexByte(text, '<')]}
	task, ok := simulator.Map.Get(ref).(*simulator.Task)
	if !ok {
		return &simulator.Task{}
	}
	return task
}

func taskAnswer(method string, task types.ManagedObjectReference) *httptest.ResponseRecorder {
	return wrapped(method, fmt.Sprintf("<returnval type=\"Task\">%s</returnval>", task.Value))
}

func emptyTask(c *call, done func() (types.AnyType, types.BaseMethodFault)) *simulator.Task {
	entity := c.This.vim()
	if s, ok := simulator.Map.Get(entity).(*simulator.VirtualMachineSnapshot); ok {
		entity = s.Vm
	}
	name := strings.ToLower(c.method[:1]) + strings.TrimSuffix(c.method[1:], "_Task")
	return simulator.CreateTask(entity, name,
		func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return done() })
}

func (f *fake) newTask(c *call, result types.AnyType, fault types.BaseMethodFault) *httptest.ResponseRecorder {
	task := emptyTask(c, func() (types.AnyType, types.BaseMethodFault) { return result, fault })
	return taskAnswer(c.method, task.Run())
}

// A task that is seen running for a while, and only then does what was asked.
func (f *fake) longTask(c *call, seconds float64) *httptest.ResponseRecorder {
	inner := *c
	inner.http = c.http.Clone(simulatorContext)
	task := emptyTask(c, func() (types.AnyType, types.BaseMethodFault) {
		done := taskOf(f.do(&inner, &rule{}))
		if done.Info.Error != nil {
			return nil, done.Info.Error.Fault
		}
		return done.Info.Result, nil
	})
	cancelled := make(chan struct{}, 1)
	m := f.machineOf(c)
	f.mutex.Lock()
	f.running[task.Self] = cancelled
	if m != nil {
		m.vm().RecentTask = append(m.vm().RecentTask, task.Self)
	}
	f.mutex.Unlock()
	simulator.Map.Update(task, []types.PropertyChange{
		{Name: "info.state", Val: types.TaskInfoStateRunning},
		{Name: "info.cancelable", Val: true},
		{Name: "info.progress", Val: int32(0)}})
	go func() {
		const steps = 10
		for i := 1; i <= steps; i++ {
			select {
			case <-cancelled:
				task.Execute = func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
					return nil, &types.RequestCanceled{}
				}
				i = steps
			case <-time.After(time.Duration(seconds / steps * float64(time.Second))):
				simulator.Map.Update(task, []types.PropertyChange{
					{Name: "info.progress", Val: int32(i * 100 / steps)}})
			}
		}
		f.mutex.Lock()
		delete(f.running, task.Self)
		f.mutex.Unlock()
		task.Run()
	}()
	return taskAnswer(c.method, task.Self)
}

func (f *fake) cancelTask(c *call) *httptest.ResponseRecorder {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	cancelled := f.running[c.This.vim()]
	if cancelled == nil {
		return faultAnswer(&types.InvalidState{}, "The operation is not allowed in the current state.")
	}
	select {
	case cancelled <- struct{}{}:
	default:
	}
	return wrapped(c.method, "")
}

// --- pages ---

func (f *fake) firstPage(result *httptest.ResponseRecorder) *httptest.ResponseRecorder {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.page == 0 || result.Code != http.StatusOK {
		return result
	}
	text := result.Body.String()
	from, to := strings.Index(text, "<objects>"), strings.LastIndex(text, "</objects>")
	if from < 0 {
		return result
	}
	parts := strings.SplitAfter(text[from:to+len("</objects>")], "</objects>")
	return f.pageOf("RetrievePropertiesEx", parts[:len(parts)-1])
}

func (f *fake) nextPage(token string) *httptest.ResponseRecorder {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	parts := f.pages[token]
	if parts == nil {
		return faultAnswer(&types.InvalidArgument{InvalidProperty: "token"},
			"A specified parameter was not correct: token")
	}
	delete(f.pages, token)
	return f.pageOf("ContinueRetrievePropertiesEx", parts)
}

func (f *fake) pageOf(method string, parts []string) *httptest.ResponseRecorder {
	token := ""
	if len(parts) > f.page {
		name := fmt.Sprintf("page-%d", time.Now().UnixNano())
		f.pages[name] = parts[f.page:]
		parts = parts[:f.page]
		token = "<token>" + name + "</token>"
	}
	return wrapped(method, "<returnval>"+token+strings.Join(parts, "")+"</returnval>")
}
