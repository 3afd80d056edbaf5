-- Looks for an answer; without one, says who asks the engine. One round trip.
-- KEYS: the answer's place, the lead. ARGV: the request's digest, a token, the lead's lease in ms.
-- Answers {"hit", age in s, answer}, {"lead"}, {"wait"} or {"alone"}.

-- A place may hold another request's answer: only the digest tells.
if redis.call('GETRANGE', KEYS[1], 0, 31) == ARGV[1] then
  local kept = redis.call('GET', KEYS[1])
  local age = tonumber(redis.call('TIME')[1]) - tonumber(string.sub(kept, 33, 42))
  return { 'hit', math.max(age, 0), string.sub(kept, 43) }
end
local lead = redis.call('GET', KEYS[2])
if lead == ARGV[2] then
  -- Ours already: the first answer was lost on its way.
  return { 'lead' }
end
if lead == '' then
  return { 'alone' }
end
if lead then
  return { 'wait' }
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return { 'lead' }
