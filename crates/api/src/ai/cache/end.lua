-- What a leader has to say.
-- KEYS: the answer's place, the lead. ARGV: word, token, ms; and to keep an answer: the request's digest, the answer.
--   keep    here is the answer, good for so many ms
--   still   prolongs the lead by so many ms
--   alone   there is no answer to keep: for so many ms nobody waits for one
--   leave   the client left: whoever comes next leads
if ARGV[1] == 'keep' then
  -- Ten digits of Unix seconds.
  redis.call('SET', KEYS[1], ARGV[4] .. redis.call('TIME')[1] .. ARGV[5], 'PX', ARGV[3])
end
-- A lease may have ended meanwhile, and the lead be another's.
if redis.call('GET', KEYS[2]) == ARGV[2] then
  if ARGV[1] == 'still' then
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
  elseif ARGV[1] == 'alone' then
    redis.call('SET', KEYS[2], '', 'PX', ARGV[3])
  else
    redis.call('DEL', KEYS[2])
  end
end
return 1
