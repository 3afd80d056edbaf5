drop table run;
