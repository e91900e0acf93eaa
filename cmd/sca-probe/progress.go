package main

import (
	"io"
	"os"
	"time"

	// progressbar draws on a terminal, whatever its width, and nothing else.
	"github.com/schollz/progressbar/v3"
	// term tells a terminal from a file or pipe, and its size.
	"golang.org/x/term"
)

// patience is how long something takes before its progress is shown.
const patience = 500 * time.Millisecond

// progress returns a function to be told how much of something is done, of 1, and one to take what
// is shown away. It shows something on a terminal only.
func progress(w io.Writer, what string) (tell func(done float64), end func()) {
	if !isTerminal(w) {
		return func(float64) {}, func() {}
	}
	const steps = 1000
	var bar *progressbar.ProgressBar
	from := time.Now()
	tell = func(done float64) {
		if bar == nil && time.Since(from) > patience {
			bar = progressbar.NewOptions(steps, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what),
				progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false), progressbar.OptionFullWidth())
		}
		if bar != nil {
			_ = bar.Set(int(done * steps))
		}
	}
	return tell, func() {
		if bar != nil {
			_ = bar.Finish()
		}
	}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
