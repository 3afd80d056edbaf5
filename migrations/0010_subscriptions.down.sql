drop table subscription;
