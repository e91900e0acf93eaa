module sca-probe

go 1.26
