drop table document_chunk, document;
