// Renders conversations with a TEMPLATE as Ollama does. What it takes from Ollama is the interface: the names a template
// sees, the order in which a tool's fields are written, and the function `json`. Reads one JSON object, writes a list.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

type Kinds []string // one type, or several

func (k *Kinds) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*k = Kinds{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(k))
}

func (k Kinds) MarshalJSON() ([]byte, error) {
	if len(k) == 1 {
		return json.Marshal(k[0])
	}
	return json.Marshal([]string(k))
}

type Property struct {
	AnyOf       []Property          `json:"anyOf,omitempty"`
	Type        Kinds               `json:"type,omitempty"`
	Items       any                 `json:"items,omitempty"`
	Description string              `json:"description,omitempty"`
	Enum        []any               `json:"enum,omitempty"`
	Properties  map[string]Property `json:"properties,omitempty"`
	Required    []string            `json:"required,omitempty"`
}

type Parameters struct {
	Type       string              `json:"type"`
	Defs       any                 `json:"$defs,omitempty"`
	Items      any                 `json:"items,omitempty"`
	Required   []string            `json:"required,omitempty"`
	Properties map[string]Property `json:"properties"`
}

type Tool struct {
	Type     string `json:"type"`
	Items    any    `json:"items,omitempty"`
	Function struct {
		Name        string     `json:"name"`
		Description string     `json:"description"`
		Parameters  Parameters `json:"parameters"`
	} `json:"function"`
}

func (t Tool) String() string { return asJSON(t) }

type Tools []Tool

func (t Tools) String() string { return asJSON(t) }

type Arguments map[string]any

func (a Arguments) String() string {
	if a == nil {
		return "{}"
	}
	return asJSON(map[string]any(a))
}

type Call struct {
	ID       string
	Function struct {
		Index     int
		Name      string
		Arguments Arguments
	}
}

type Message struct {
	Role       string
	Content    string
	Thinking   string
	Images     [][]byte
	ToolCalls  []Call `json:"tool_calls"`
	ToolName   string
	ToolCallID string
}

type Case struct {
	Messages []*Message
	Tools    Tools
	Think    *bool
}

func main() {
	var input struct {
		Template string
		Cases    []Case
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	functions := template.FuncMap{"json": asJSON}
	parsed := template.Must(template.New("").Option("missingkey=zero").Funcs(functions).Parse(input.Template))
	rendered := []string{}
	for _, c := range input.Cases {
		system := ""
		for _, message := range c.Messages {
			if message.Role == "system" {
				system += message.Content
			}
		}
		var out bytes.Buffer
		err := parsed.Execute(&out, map[string]any{
			"System": system, "Messages": c.Messages, "Tools": c.Tools, "Response": "",
			"Think": c.Think != nil && *c.Think, "ThinkLevel": "", "IsThinkSet": c.Think != nil,
		})
		if err != nil {
			panic(err)
		}
		rendered = append(rendered, out.String())
	}
	os.Stdout.WriteString(asJSON(rendered))
}
