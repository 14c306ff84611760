// Package manual makes the manual pages of Mica's programs, for packages: with the build tag
// "manual", because the library takes a megabyte of memory in every process.
package manual
