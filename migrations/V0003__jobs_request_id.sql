-- The id of the HTTP request that made the job, for the worker's log lines.
alter table jobs add column request_id text check (length(request_id) <= 128);
