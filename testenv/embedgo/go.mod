module sca-probe/testenv/embedgo

go 1.26
