// Package page tests micad's page: its waterfall beside the network's own log and, in a browser
// (build tag browser), how quickly it loads, its errors, and the keyboard.
package page
